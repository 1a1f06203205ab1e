"""Reading an ONNX folder back, trusting nothing in it.

Only what `exporters.onnx.graph` writes is accepted: two plain files, one opset, known metadata,
every part exactly where `exporters.onnx.parts.place` puts it, so nothing can overlap, hide in a
gap or lie outside the file. Values are read one tensor at a time and checked as they are read.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from edgeqaf import plugins, runs
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused, UsageError
from edgeqaf.exportoptions import ACTIVATIONS, Form, OnnxOptions
from edgeqaf.grid import Grid
from edgeqaf.protocols import Stored
from edgeqaf.runs import Outline, Rows, Run
from exporters.onnx import parts as layout
from exporters.onnx.exact import columns
from exporters.onnx.exact import uses as exact_uses
from exporters.onnx.exact.columns import Columns
from exporters.onnx.graph import DATA, MODEL, declared, versions
from exporters.onnx.linear import MICROSOFT, Kind
from exporters.onnx.opened import AGAIN, opened
from exporters.onnx.parts import Part
from exporters.onnx.seal import FORM, GRIDS, SEAL, SHAPES, seal_fits
from exporters.onnx.strips import InFolder, Layout
from exporters.onnx.uses import PARTS, check_uses

OPERATORS = {(MICROSOFT, "MatMulNBits")}
MAX_MODEL_BYTES = 2**28  # the graph alone; the weights are in the data file


def read_back(folder: Path) -> Mapping[str, Stored]:
    """The tensors of the ONNX folder ``folder`` by logical name; raises Refused for any doubt."""
    model, asked = _parse(folder / MODEL)
    grids = _grids(model)
    _check_header(model, versions(grids.values(), asked))
    external = {t.name: t for t in model.graph.initializer if t.external_data or t.data_location}
    if len({t.name for t in model.graph.initializer}) != len(model.graph.initializer):
        raise Refused(f"{folder / MODEL}: an initializer is defined twice", AGAIN)
    exact = asked.profile == "exact"
    shapes = _stated_shapes(model, grids) if exact else _shapes(model, external, grids)
    tensors: dict[str, Kind] = {name: (shape, grids.get(name)) for name, shape in shapes.items()}
    stored = {name: layout.parts(name, *kind, asked.form) for name, kind in tensors.items()}
    every = [part for each in stored.values() for part in each]
    groups = columns.groups({name: tuple(t.dims) for name, t in external.items()}, tensors) if exact else {}
    every += [part for names, count in groups.items() for part in columns.parts(names, shapes, count)]
    offsets, length = layout.place(every)
    read = {value for node in model.graph.node for value in node.input}
    known = [(p, p) for p in every if p.name in read] if exact else declared(tensors, every, read, asked.form)
    if foreign := sorted(external.keys() ^ {part.name for part, _ in known}):
        raise Refused(f"initializer {foreign[0]} is not one of those that the tensors have", AGAIN)
    _check_parts(external, known, offsets)
    if exact:
        exact_uses.check_uses(model.graph, tensors, groups, asked)
    else:
        check_uses(model.graph, tensors, asked)
    _check_file(folder / DATA, length)
    _check_onnx(folder / MODEL)
    layouts = {
        name: Layout(name, *kind, stored[name], {part.name: offsets[part.name] for part in stored[name]})
        for name, kind in tensors.items()
    }
    digits = {
        n: c for names, count in groups.items() for n, c in columns.columns(names, tensors, count, offsets).items()
    }
    return _Tensors(folder / DATA, layouts, digits, f"exact {asked.activations}" if exact else "")


def _parse(path: Path) -> tuple[Any, OnnxOptions]:
    """The model and how it was asked for, provided the file is as it was sealed."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_MODEL_BYTES:
            raise Refused(f"{path} has {size} bytes, not 1 to {MAX_MODEL_BYTES}", AGAIN)
        try:
            model = onnx.ModelProto.FromString(raw := file.read())
        except DecodeError as error:
            raise Refused(f"{path} is not an ONNX model: {error}", AGAIN) from None
    if any(not isinstance(text, str) for text in _texts(model)):  # as protobuf gives what is no UTF-8
        raise Refused(f"{path} holds a name that is no text", AGAIN)
    entries = [(p.key, p.value) for p in model.metadata_props]
    keys = [key for key, _ in entries]
    if keys not in ([GRIDS, FORM, SEAL], [GRIDS, FORM, SHAPES, SEAL]):
        raise Refused(f"metadata keys {keys}, expected {[GRIDS, FORM, SEAL]}, or {SHAPES} too", AGAIN)
    if not seal_fits(raw, entries[-1][1]):
        raise Refused(f"{path} is not the file whose digest it holds", AGAIN)
    asked = _asked(entries[1][1])
    if (SHAPES in keys) != (asked.profile == "exact"):
        raise Refused(f"metadata keys {keys} in profile {asked.profile}", AGAIN)
    return model, asked


def _texts(model: Any) -> Iterator[Any]:
    """What is read of a model as text."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (opset.domain for opset in model.opset_import)
    for node in model.graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for tensor in model.graph.initializer:
        yield from (tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value)))


def _asked(text: str) -> OnnxOptions:
    """The options of an export that can have made such a file."""
    import json

    try:
        found = OnnxOptions(**json.loads(text))
        known = found.activations in ACTIVATIONS[found.profile] and found.form in get_args(Form)
        known = known and found.accuracy_level in range(5) and (found.profile == "everyday" or found.form == "qdq")
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise Refused(f"metadata {FORM}: {text[:200]}", AGAIN)
    return found


def _check_header(model: Any, expected: tuple[int, list[tuple[str, int]]]) -> None:
    ir, wanted = expected
    opsets = [(o.domain, o.version) for o in model.opset_import]
    if (model.ir_version, opsets) != expected:
        raise Refused(f"IR {model.ir_version}, opsets {opsets}; expected IR {ir}, opsets {wanted}", AGAIN)
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise Refused("the model holds functions, training info or sparse tensors", AGAIN)
    for node in model.graph.node:
        if ((node.domain, node.op_type) not in OPERATORS and node.domain) or any(
            a.HasField("g") or a.graphs for a in node.attribute
        ):
            raise Refused(f"node {node.name} is {node.domain or 'a subgraph of'}:{node.op_type}", AGAIN)


def _grids(model: Any) -> dict[str, Grid]:
    """Logical name -> grid of the quantized tensors, from the model's metadata."""
    import json

    try:
        named = json.loads(model.metadata_props[0].value)
        found: dict[str, Grid] = {name: plugins.find("grids", grid) for name, grid in named.items()}
    except (ValueError, AttributeError, UsageError) as error:
        raise Refused(f"metadata {GRIDS}: {error}", AGAIN) from None
    for grid in found.values():
        if reason := layout.refuses(grid):
            raise Refused(f"grid {grid.name}: {reason}", AGAIN)
    return found


def _shapes(model: Any, external: Mapping[str, Any], grids: Mapping[str, Grid]) -> dict[str, tuple[int, ...]]:
    """Logical shapes, [out, in] for matrices, of the tensors that the initializers declare."""
    owned = {f"{name}.{part}" for name in grids for part in PARTS}
    needed = {part.name for name, grid in grids.items() for part in layout.parts(name, (0, 0), grid)}
    if absent := sorted(needed - set(external)):
        raise Refused(f"no initializer {absent[0]}", AGAIN)
    shapes = {name: tuple(t.dims) for name, t in external.items() if name not in owned}
    for name, grid in grids.items():
        codes, scale = (tuple(external[f"{name}.{part}"].dims) for part in ("codes", "scale"))
        shapes[name] = codes[::-1] if len(codes) == 2 else (*codes[:1], *(n * grid.block for n in scale[1:]))
    return _checked(shapes, grids)


def _stated_shapes(model: Any, grids: Mapping[str, Grid]) -> dict[str, tuple[int, ...]]:
    """Logical shapes as the metadata of the exact profile say."""
    import json

    text = model.metadata_props[2].value
    try:
        found = json.loads(text)
        shapes = {name: tuple(int(n) for n in shape) for name, shape in found.items()}
        if any(list(shapes[name]) != found[name] for name in shapes):
            raise ValueError("not of integers")
    except (ValueError, AttributeError, TypeError) as error:
        raise Refused(f"metadata {SHAPES}: {error}", AGAIN) from None
    if absent := sorted(grids.keys() - shapes.keys()):
        raise Refused(f"metadata {SHAPES} has no {absent[0]}", AGAIN)
    return _checked(shapes, grids)


def _checked(shapes: Mapping[str, tuple[int, ...]], grids: Mapping[str, Grid]) -> dict[str, tuple[int, ...]]:
    for name, shape in shapes.items():
        if not shape or min(shape) < 1 or (name in grids and (len(shape) != 2 or not grids[name].fits(shape[1]))):
            raise Refused(f"{name} has shape {shape}", AGAIN)
    return {name: shapes[name] for name in sorted(shapes)}


def _check_parts(external: Mapping[str, Any], known: list[tuple[Part, Part]], offsets: Mapping[str, int]) -> None:
    from onnx import TensorProto

    for part, home in known:
        tensor = external[part.name]
        wanted = {"location": DATA, "offset": str(offsets[home.name]), "length": str(part.nbytes)}
        found = {entry.key: entry.value for entry in tensor.external_data}
        if found != wanted or len(tensor.external_data) != len(wanted) or tensor.data_location != TensorProto.EXTERNAL:
            raise Refused(f"{part.name} is stored at {found}, expected {wanted}", AGAIN)
        declared = (TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims))
        if declared != (part.type, part.shape):
            raise Refused(f"{part.name} is {declared}, expected {(part.type, part.shape)}", AGAIN)


def _check_file(path: Path, length: int) -> None:
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != length:
        raise Refused(f"{path} has {size} bytes, its tensors take {length}", AGAIN)


def _check_onnx(path: Path) -> None:
    """Let onnx's own checker have its say."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise Refused(f"{path}: {str(error).strip().splitlines()[0]}", AGAIN) from None


class _Tensors(Mapping[str, Stored]):
    """Tensors of an ONNX folder, read and checked as they are asked for, by rows or one at a time.

    digits: of those whose digits the data file has beside their codes. program: `edgeqaf.protocols.Artifact.program`.
    """

    def __init__(self, data: Path, layouts: Mapping[str, Layout], digits: Mapping[str, Columns], program: str) -> None:
        self._data, self._layouts, self._digits, self.program = data, layouts, digits, program

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        return name in self._layouts  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Stored:
        layout, rows = self._layouts[name], self.rows(name)
        shape, grid = layout.shape, layout.grid
        tensor: Any = rows(0, shape[0]) if grid is None else runs.whole(rows, grid, (shape[0], shape[1]))
        return Stored(tensor, layout.stored[0].name)

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        read, digits = InFolder(self._data, self._layouts[name]).read, self._digits.get(name)

        def checked(start: int, stop: int) -> Run:
            run = read(start, stop)
            if digits is not None:
                digits.check(self._data, start, run)
            return run

        return checked

    def outline(self) -> Outline:
        """`edgeqaf.checkpoint.QModel.outline`, from the graph alone."""
        return {n: (x.grid.name if x.grid else FLOAT32, x.shape) for n, x in self._layouts.items()}
