"""Reading an ONNX folder back, trusting nothing in it.

Only what `exporters.onnx.graph` writes is accepted: two plain files, one opset, known metadata,
every part exactly where `exporters.onnx.parts.place` puts it, so nothing can overlap, hide in a
gap or lie outside the file. Values are read one tensor at a time and checked as they are read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.protocols import Stored
from exporters.onnx import parts as layout
from exporters.onnx.data import placed
from exporters.onnx.exact import columns
from exporters.onnx.exact import uses as exact_uses
from exporters.onnx.graph import DATA, MODEL, declared, versions
from exporters.onnx.linear import MICROSOFT, Kind
from exporters.onnx.opened import AGAIN, opened
from exporters.onnx.parts import Part
from exporters.onnx.stated import parse, stated_grids, stated_shapes
from exporters.onnx.tensors import FolderTensors
from exporters.onnx.uses import PARTS, check_uses

OPERATORS = {(MICROSOFT, "MatMulNBits")}


def read_back(folder: Path) -> Mapping[str, Stored]:
    """The tensors of the ONNX folder ``folder`` by logical name; raises Refused for any doubt."""
    model, asked = parse(folder / MODEL)
    grids = stated_grids(model)
    _check_header(model, versions(grids.values(), asked))
    external = {t.name: t for t in model.graph.initializer if t.external_data or t.data_location}
    if len({t.name for t in model.graph.initializer}) != len(model.graph.initializer):
        raise Refused(f"{folder / MODEL}: an initializer is defined twice", AGAIN)
    exact = asked.profile == "exact"
    shapes = _sound(stated_shapes(model) if exact else _shapes(external, grids), grids)
    tensors: dict[str, Kind] = {name: (shape, grids.get(name)) for name, shape in shapes.items()}
    groups = columns.groups({name: tuple(t.dims) for name, t in external.items()}, tensors) if exact else {}
    data = placed(tensors, asked.form, groups)
    read = {value for node in model.graph.node for value in node.input}
    known = [(p, p) for p in data.parts if p.name in read] if exact else declared(tensors, data.parts, read, asked.form)
    if foreign := sorted(external.keys() ^ {part.name for part, _ in known}):
        raise Refused(f"initializer {foreign[0]} is not one of those that the tensors have", AGAIN)
    _check_parts(external, known, data.offsets)
    if exact:
        exact_uses.check_uses(model.graph, tensors, groups, asked)
    else:
        check_uses(model.graph, tensors, asked)
    _check_file(folder / DATA, data.size)
    _check_onnx(folder / MODEL)
    return FolderTensors(folder / DATA, data, asked.program)


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


def _shapes(external: Mapping[str, Any], grids: Mapping[str, Grid]) -> dict[str, tuple[int, ...]]:
    """Logical shapes, [out, in] for matrices, of the tensors that the initializers declare."""
    owned = {f"{name}.{part}" for name in grids for part in PARTS}
    needed = {part.name for name, grid in grids.items() for part in layout.parts(name, (0, 0), grid)}
    if absent := sorted(needed - set(external)):
        raise Refused(f"no initializer {absent[0]}", AGAIN)
    shapes = {name: tuple(t.dims) for name, t in external.items() if name not in owned}
    for name, grid in grids.items():
        codes, scale = (tuple(external[f"{name}.{part}"].dims) for part in ("codes", "scale"))
        shapes[name] = codes[::-1] if len(codes) == 2 else (*codes[:1], *(n * grid.block for n in scale[1:]))
    return shapes


def _sound(shapes: Mapping[str, tuple[int, ...]], grids: Mapping[str, Grid]) -> dict[str, tuple[int, ...]]:
    """Shapes by sorted name; Refused for one that is none, or that its grid does not fit."""
    if absent := sorted(grids.keys() - shapes.keys()):
        raise Refused(f"{absent[0]} has a grid and no shape", AGAIN)
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
