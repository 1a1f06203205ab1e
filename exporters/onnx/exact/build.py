"""The exact program's files: the graph, and the weights as it reads them.

Beside the model's tensors, as `exporters.onnx.parts` lays them out, the data file holds what the program reads:

    NAME             FLOAT  a tensor that is used as it is: norms, biases, an embedding in floats
    GROUP.high, .low, .unit matrices, and an embedding on a grid (`columns`)
    LAYER.values.*   FLOAT  what bounds a layer's values, and their grid; inside the graph

What the program does not read (codes, scales) is no initializer: it is there to be read back, and to tell whether the
digits are right.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeqaf.checkpoint import QModel
from edgeqaf.runs import rows_of
from edgeqaf.source import EMBEDDING
from exporters.onnx.data import Data, placed
from exporters.onnx.exact import measure, products
from exporters.onnx.exact.columns import GROUP, HIGH
from exporters.onnx.exact.lower import lower, matrices
from exporters.onnx.graph import assembled, check_tensors, external, versions
from exporters.onnx.linear import Kind
from exporters.onnx.seal import FORM, GRIDS, SHAPES
from exporters.onnx.stack import copies, stack
from exporters.onnx.trace import Traced, trace


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
    groups = _groups(read, {copy: n for name, n in counts.items() for copy in copies(traced, name)})
    data = placed(kinds, digits=groups)
    initializers = [
        *program.graph.initializer,
        *_limits(model, kinds, traced),
        *external(data.offsets, [(part, part) for part in data.parts if part.name in read]),
    ]
    grids = {name: grid for name, (_, grid) in sorted(kinds.items()) if grid is not None}
    entries = {
        GRIDS: {name: grid.name for name, grid in grids.items()},
        FORM: asdict(asked),
        SHAPES: {name: shape for name, (shape, _) in sorted(kinds.items())},
    }
    file = assembled(program, nodes, initializers, versions(grids.values(), asked), entries, shapes=True)
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


def _groups(read: Iterable[str], counts: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    """The digits of each group that is read. counts: those of each matrix, in all layers."""
    found = {tuple(value.removesuffix(HIGH).split(GROUP)) for value in read if value.endswith(HIGH)}
    return {names: max(counts[name] for name in names) for names in sorted(found)}
