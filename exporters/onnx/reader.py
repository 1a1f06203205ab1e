"""Reading an ONNX folder back, trusting nothing in it.

Only what `exporters.onnx.graph` writes is accepted: two plain files, one opset, known metadata,
every part exactly where `exporters.onnx.parts.place` puts it, so nothing can overlap, hide in a
gap or lie outside the file. Values are read one tensor at a time and checked as they are read.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeqaf import plugins
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused, UsageError
from edgeqaf.grid import Grid
from edgeqaf.protocols import Stored
from edgeqaf.runs import Outline, Rows
from exporters.onnx import parts as layout
from exporters.onnx.graph import DATA, GRIDS, MODEL, versions
from exporters.onnx.opened import AGAIN, opened
from exporters.onnx.parts import Part
from exporters.onnx.strips import InFolder, Layout

MAX_MODEL_BYTES = 2**28  # the graph alone; the weights are in the data file


def read_back(folder: Path) -> Mapping[str, Stored]:
    """The tensors of the ONNX folder ``folder`` by logical name; raises Refused for any doubt."""
    model = _parse(folder / MODEL)
    grids = _grids(model)
    _check_header(model, versions(grids.values()))
    external = {t.name: t for t in model.graph.initializer if t.external_data or t.data_location}
    if len({t.name for t in model.graph.initializer}) != len(model.graph.initializer):
        raise Refused(f"{folder / MODEL}: an initializer is defined twice", AGAIN)
    shapes = _shapes(external, grids)
    stored = [part for name, shape in shapes.items() for part in layout.parts(name, shape, grids.get(name))]
    offsets, length = layout.place(stored)
    _check_parts(external, stored, offsets)
    _check_uses(model.graph, shapes, grids)
    _check_file(folder / DATA, length)
    _check_onnx(folder / MODEL)
    layouts = {
        name: Layout(name, shape, grids.get(name), parts, {part.name: offsets[part.name] for part in parts})
        for name, shape in shapes.items()
        for parts in [layout.parts(name, shape, grids.get(name))]
    }
    return _Tensors(folder / DATA, layouts)


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_MODEL_BYTES:
            raise Refused(f"{path} has {size} bytes, not 1 to {MAX_MODEL_BYTES}", AGAIN)
        try:
            return onnx.ModelProto.FromString(file.read())
        except DecodeError as error:
            raise Refused(f"{path} is not an ONNX model: {error}", AGAIN) from None


def _check_header(model: Any, expected: tuple[int, int]) -> None:
    ir, opset = expected
    opsets = [(o.domain, o.version) for o in model.opset_import]
    if model.ir_version != ir or opsets != [("", opset)]:
        raise Refused(f"IR {model.ir_version}, opsets {opsets}; expected IR {ir}, opset {opset}", AGAIN)
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise Refused("the model holds functions, training info or sparse tensors", AGAIN)
    for node in model.graph.node:
        if node.domain or any(a.HasField("g") or a.graphs for a in node.attribute):
            raise Refused(f"node {node.name} is {node.domain or 'a subgraph of'}:{node.op_type}", AGAIN)


def _grids(model: Any) -> dict[str, Grid]:
    """Logical name -> grid of the quantized tensors, from the model's metadata."""
    import json

    entries = [(p.key, p.value) for p in model.metadata_props]
    if [key for key, _ in entries] != [GRIDS]:
        raise Refused(f"metadata keys {[key for key, _ in entries]}, expected {[GRIDS]}", AGAIN)
    try:
        named = json.loads(entries[0][1])
        found: dict[str, Grid] = {name: plugins.find("grids", grid) for name, grid in named.items()}
    except (ValueError, AttributeError, UsageError) as error:
        raise Refused(f"metadata {GRIDS}: {error}", AGAIN) from None
    for grid in found.values():
        if reason := layout.refuses(grid):
            raise Refused(f"grid {grid.name}: {reason}", AGAIN)
    return found


def _shapes(external: Mapping[str, Any], grids: Mapping[str, Grid]) -> dict[str, tuple[int, ...]]:
    """Logical shapes, [out, in] for matrices, of the tensors that the initializers declare."""
    owned = {part.name for name, grid in grids.items() for part in layout.parts(name, (0, 0), grid)}
    if absent := sorted(owned - set(external)):
        raise Refused(f"no initializer {absent[0]}", AGAIN)
    shapes = {name: tuple(t.dims) for name, t in external.items() if name not in owned}
    for name in grids:
        shapes[name] = tuple(reversed(external[f"{name}.codes"].dims))
    for name, shape in shapes.items():
        if not shape or min(shape) < 1 or (name in grids and (len(shape) != 2 or not grids[name].fits(shape[1]))):
            raise Refused(f"{name} has shape {shape}", AGAIN)
    return {name: shapes[name] for name in sorted(shapes)}


def _check_parts(external: Mapping[str, Any], stored: list[Part], offsets: Mapping[str, int]) -> None:
    from onnx import TensorProto

    for part in stored:
        tensor = external[part.name]
        wanted = {"location": DATA, "offset": str(offsets[part.name]), "length": str(part.nbytes)}
        found = {entry.key: entry.value for entry in tensor.external_data}
        if found != wanted or len(tensor.external_data) != len(wanted) or tensor.data_location != TensorProto.EXTERNAL:
            raise Refused(f"{part.name} is stored at {found}, expected {wanted}", AGAIN)
        declared = (TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims))
        if declared != (part.type, part.shape):
            raise Refused(f"{part.name} is {declared}, expected {(part.type, part.shape)}", AGAIN)


def _check_uses(graph: Any, shapes: Mapping[str, tuple[int, ...]], grids: Mapping[str, Grid]) -> None:
    """Each quantized tensor is dequantized once, by its own parts, and feeds one MatMul."""
    from onnx import helper

    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in set(node.input):
            users.setdefault(value, []).append(node)
    for name in shapes:
        if name not in grids:
            if not users.get(name):
                raise Refused(f"{name} is not used by any node", AGAIN)
            continue
        wanted = [f"{name}.{part}" for part in ("codes", "scale", "zero_point")]
        readers = users.get(wanted[0], [])
        if [(n.op_type, list(n.input), list(n.output)) for n in readers] != [("DequantizeLinear", wanted, [name])]:
            raise Refused(f"{name}.codes is not read by one DequantizeLinear with its own scale and zero point", AGAIN)
        attributes = {a.name: helper.get_attribute_value(a) for a in readers[0].attribute}
        if attributes != {"axis": 0, "block_size": grids[name].block}:
            raise Refused(f"{name} is dequantized with {attributes}, {grids[name].name} has other blocks", AGAIN)
        if [(n.op_type, n.input[1]) for n in users.get(name, [])] != [("MatMul", name)]:
            raise Refused(f"{name} does not feed one MatMul", AGAIN)


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
    """Tensors of an ONNX folder, read and checked as they are asked for, by rows or one at a time."""

    def __init__(self, data: Path, layouts: Mapping[str, Layout]) -> None:
        self._data, self._layouts = data, layouts

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        return name in self._layouts  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Stored:
        layout = self._layouts[name]
        return Stored(InFolder(self._data, layout).whole(), layout.stored[0].name)

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        return InFolder(self._data, self._layouts[name]).read

    def outline(self) -> Outline:
        """`edgeqaf.checkpoint.QModel.outline`, from the graph alone."""
        return {n: (x.grid.name if x.grid else FLOAT32, x.shape) for n, x in self._layouts.items()}
