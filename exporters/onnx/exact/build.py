"""The exact program's files: the graph, and the weights as it reads them.

Beside the model's tensors, as `exporters.onnx.parts` lays them out, the data file holds what the program reads:

    NAME             FLOAT  a tensor that is used as it is: norms, biases, an embedding in floats
    GROUP.digits,
    GROUP.unit              matrices, and an embedding on a grid (`columns`)
    LAYER.values.*   FLOAT  what bounds a layer's values, and their grid; inside the graph

What the program does not read (codes, scales) is no initializer: it is there to be read back, and to tell whether the
digits are right.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqaf.checkpoint import QModel
from edgeqaf.console import progress
from edgeqaf.runs import rows_of
from edgeqaf.source import EMBEDDING
from exporters.onnx import parts as layout
from exporters.onnx.exact import columns, measure, products
from exporters.onnx.exact.columns import DIGITS, GROUP, Columns
from exporters.onnx.exact.lower import lower, matrices
from exporters.onnx.graph import assembled, check_tensors, external, versions
from exporters.onnx.linear import Kind
from exporters.onnx.parts import Part
from exporters.onnx.seal import FORM, GRIDS, SHAPES
from exporters.onnx.stack import copies, stack
from exporters.onnx.strips import Layout, write
from exporters.onnx.trace import Traced, trace


@dataclass(frozen=True)
class Data:
    """What lies where in the data file.

    parts:   all of them, sorted by name. size: of the file, in bytes.
    layouts: of every tensor. columns: of those that have digits too.
    """

    parts: Sequence[Part]
    size: int
    layouts: Mapping[str, Layout]
    columns: Mapping[str, Columns]


@dataclass(frozen=True)
class Prepared:
    """All but the weights: the program as torch traced it, the file of the lowered one, and where its data goes."""

    traced: Traced
    program: bytes
    data: Data


def prepare(model: QModel, kinds: Mapping[str, Kind]) -> Prepared:
    """Measure the weights and write the program for them.

    Raises Refused for an operation without an exact form, or a matrix that no integers hold.
    """
    traced = trace(model.config)
    check_tensors(traced, kinds)
    looked_up = {name for name in (EMBEDDING,) if kinds[name][1] is not None}
    counts = {name: _count(model, kinds, copies(traced, name)) for name in sorted(matrices(traced) | looked_up)}
    asked = model.asked.onnx
    program = lower(traced, counts, looked_up, model.config["max_position_embeddings"], asked.activations)
    nodes = list(stack(program))
    read = {value for node in nodes for value in node.input}
    data = _placed(read, kinds, {copy: n for name, n in counts.items() for copy in copies(traced, name)})
    initializers = [
        *program.graph.initializer,
        *_limits(model, kinds, traced),
        *external(data.parts, [(part, part) for part in data.parts if part.name in read]),
    ]
    grids = {name: grid for name, (_, grid) in sorted(kinds.items()) if grid is not None}
    entries = {
        GRIDS: {name: grid.name for name, grid in grids.items()},
        FORM: asdict(asked),
        SHAPES: {name: shape for name, (shape, _) in sorted(kinds.items())},
    }
    file = assembled(program, nodes, initializers, versions(grids.values(), asked), entries)
    return Prepared(traced, file, data)


def _count(model: QModel, kinds: Mapping[str, Kind], names: list[str]) -> int:
    """The digits of one matrix in all layers."""
    return max(measure.count(name, rows_of(model.tensors, name), kinds[name]) for name in names)


def _limits(model: QModel, kinds: Mapping[str, Kind], traced: Traced) -> Iterator[Any]:
    """What bounds the values of each layer, as onnx.TensorProto."""
    from onnx import numpy_helper

    for layer in range(len(traced.layers)):
        bound = measure.bound(model.config, model.tensors, kinds, traced, layer)
        for name, value in products.value_limits(layer, bound).items():
            yield numpy_helper.from_array(np.float32(value), name)


def _placed(read: Iterable[str], kinds: Mapping[str, Kind], counts: Mapping[str, int]) -> Data:
    """counts: the digits of each matrix, in all layers."""
    groups = {tuple(value.removesuffix(DIGITS).split(GROUP)) for value in read if value.endswith(DIGITS)}
    digits = {names: max(counts[name] for name in names) for names in sorted(groups)}
    own = {name: layout.parts(name, *kind) for name, kind in kinds.items()}
    further = [p for names, n in digits.items() for p in columns.parts(names, {x: kinds[x][0] for x in names}, n)]
    stored = sorted([*further, *(part for parts in own.values() for part in parts)], key=lambda part: part.name)
    offsets, size = layout.place(stored)
    return Data(
        stored,
        size,
        {name: Layout(name, *kinds[name], own[name], {p.name: offsets[p.name] for p in own[name]}) for name in own},
        {name: c for names, n in digits.items() for name, c in columns.columns(names, kinds, n, offsets).items()},
    )


def write_data(path: Path, model: QModel, data: Data) -> None:
    """The data file, each tensor by runs of rows."""
    with open(path, "xb") as file, progress("write onnx", data.size, "B") as advance:
        file.truncate(data.size)
        done = 0
        for name, layout in data.layouts.items():
            done += write(file.fileno(), layout, rows_of(model.tensors, name))
            if name in data.columns:
                done += data.columns[name].write(file.fileno(), rows_of(model.tensors, name))
            advance(done, name)
