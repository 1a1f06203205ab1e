"""The exact program's files: the graph, and the weights as it reads them.

Beside the model's tensors, as `exporters.onnx.parts` lays them out, the data file holds what the program reads:

    NAME             FLOAT  a tensor that is used as it is: norms, biases, an embedding in floats
    GROUP.digits,
    GROUP.unit              matrices, and an embedding on a grid (`columns`)
    LAYER.values.*   FLOAT  what bounds a layer's values, and their grid; inside the graph

What the program does not read (codes, scales) is no initializer: it is there to be read back, and to tell whether the
digits are right.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

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
class Prepared:
    """All but the weights: the traced program, the file of the lowered one, and where everything lies."""

    traced: Traced
    program: bytes
    layouts: Mapping[str, Layout]
    columns: Mapping[str, Columns]
    size: int


def prepare(model: QModel, kinds: Mapping[str, Kind]) -> Prepared:
    """Measure the weights and write the program for them.

    Raises Refused for an operation without an exact form, or a matrix that no integers hold.
    """
    from onnx import numpy_helper

    traced = trace(model.config)
    check_tensors(traced, kinds)
    looked_up = {name for name in (EMBEDDING,) if kinds[name][1] is not None}
    counts = {name: _count(model, kinds, copies(traced, name)) for name in sorted(matrices(traced) | looked_up)}
    asked = model.asked.onnx
    program = lower(traced, counts, looked_up, model.config["max_position_embeddings"], asked.activations)
    nodes = list(stack(program))
    read = {value for node in nodes for value in node.input}
    own = {name: layout.parts(name, *kind) for name, kind in kinds.items()}
    held = {copy: count for name, count in counts.items() for copy in copies(traced, name)}
    groups = {tuple(v.removesuffix(DIGITS).split(GROUP)) for v in read if v.endswith(DIGITS)}
    digits = {names: max(held[name] for name in names) for names in groups}
    stored = sorted(_stored(own, digits, kinds), key=lambda part: part.name)
    offsets, size = layout.place(stored)
    limits = (
        products.value_limits(layer, measure.bound(model.config, model.tensors, kinds, traced, layer))
        for layer in range(len(traced.layers))
    )
    constants = [numpy_helper.from_array(np.float32(value), name) for each in limits for name, value in each.items()]
    declared = [(part, part) for part in stored if part.name in read]
    initializers = [*program.graph.initializer, *constants, *external(stored, declared)]
    grids = {name: grid for name, (_, grid) in sorted(kinds.items()) if grid is not None}
    entries = {
        GRIDS: {name: grid.name for name, grid in grids.items()},
        FORM: asdict(asked),
        SHAPES: {name: shape for name, (shape, _) in sorted(kinds.items())},
    }
    return Prepared(
        traced,
        assembled(program, nodes, initializers, versions(grids.values(), asked), entries),
        {name: Layout(name, *kinds[name], own[name], {p.name: offsets[p.name] for p in own[name]}) for name in own},
        {name: c for names, n in digits.items() for name, c in columns.columns(names, kinds, n, offsets).items()},
        size,
    )


def _count(model: QModel, kinds: Mapping[str, Kind], names: list[str]) -> int:
    """The digits of one matrix in all layers."""
    return max(measure.count(name, rows_of(model.tensors, name), kinds[name]) for name in names)


def _stored(
    own: Mapping[str, list[Part]], digits: Mapping[tuple[str, ...], int], kinds: Mapping[str, Kind]
) -> Iterator[Part]:
    """Every part of the data file."""
    for parts in own.values():
        yield from parts
    for names, count in digits.items():
        yield from columns.parts(names, {name: kinds[name][0] for name in names}, count)


def write_data(path: Path, model: QModel, prepared: Prepared) -> None:
    """The data file, each tensor by runs of rows."""
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "xb"))
        advance = stack.enter_context(progress("write onnx", prepared.size, "B"))
        file.truncate(prepared.size)
        done = 0
        for name, layout in prepared.layouts.items():
            done += write(file.fileno(), layout, rows_of(model.tensors, name))
            if name in prepared.columns:
                done += prepared.columns[name].write(file.fileno(), rows_of(model.tensors, name))
            advance(done, name)
