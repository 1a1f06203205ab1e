"""The exact program's files: the graph, and the weights as it reads them.

    NAME                 FLOAT  a tensor that is used as it is: norms, biases, the embedding
    GROUP.digits         INT8   [in, digits * out]   matrices that read one input, side by side, a digit at a time
    GROUP.unit           FLOAT  [out]                what their integers count
    LAYER.values.*       FLOAT  what bounds a layer's values, and their grid

GROUP is the names of its matrices, joined by "+".
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import __version__
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Floats, Tensor
from edgeqaf.errors import Refused
from edgeqaf.qtensor import QTensor
from edgeqaf.source import EMBEDDING, HEAD
from exporters.onnx.exact import digits, measure, products
from exporters.onnx.exact.lower import GROUP, lower
from exporters.onnx.graph import DATA, MODEL, external, signature
from exporters.onnx.parts import Part, place
from exporters.onnx.stack import copies, stack
from exporters.onnx.trace import PRIMITIVES, Traced, trace

IR_VERSION = 10
DIGITS, UNIT = ".digits", ".unit"


def write(model: QModel, folder: Path, bits: int = 16) -> None:
    """Write ``model.onnx`` and its data into ``folder``. bits: of the activations that enter a matrix, 8 or 16.

    Raises Refused for an operation without an exact form, or a matrix that no integers hold.
    """
    _refuse_quantized_ends(model.tensors)
    traced = trace(model.config)
    measured = {n: measure.matrix(n, t) for n, t in model.tensors.items() if len(t.shape) == 2}
    counts = {
        name: max(measured[copy].digits for copy in copies(traced, name))
        for name, shape in traced.weights.items()
        if len(shape) == 2
    }
    program = lower(traced, counts, model.config["max_position_embeddings"], bits)
    nodes = list(stack(program))
    read = {value for node in nodes for value in node.input}
    stored = sorted(_parts(traced, counts, {n: t.shape for n, t in model.tensors.items()}, read), key=lambda p: p.name)
    (folder / MODEL).write_bytes(_file(program, nodes, stored, _limits(model, traced, measured)))
    offsets, size = place(stored)
    with open(folder / DATA, "wb") as file:
        file.truncate(size)
        for part in stored:
            file.seek(offsets[part.name])
            file.write(np.ascontiguousarray(_array(part, model.tensors, measured)).data)


def _refuse_quantized_ends(tensors: Mapping[str, Tensor]) -> None:
    for name in (EMBEDDING, HEAD):
        if isinstance(tensors.get(name), QTensor):
            raise Refused(f"{name} is quantized: the exact profile holds it in float32", "export the everyday profile")


def _parts(
    traced: Traced, counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], read: set[str]
) -> Iterator[Part]:
    """What the nodes read, as initializers."""
    for name, shape in shapes.items():
        if name in read:
            yield Part(name, "FLOAT", shape)
    held = {copy: digits for name, digits in counts.items() for copy in copies(traced, name)}
    for value in read:
        if value.endswith(DIGITS):
            names = value.removesuffix(DIGITS).split(GROUP)
            out, (_, inputs) = sum(shapes[name][0] for name in names), shapes[names[0]]
            yield Part(value, "INT8", (inputs, max(held[name] for name in names) * out))
            yield Part(value.removesuffix(DIGITS) + UNIT, "FLOAT", (out,))


def _array(part: Part, tensors: Mapping[str, Tensor], measured: Mapping[str, measure.Matrix]) -> NDArray[Any]:
    """The values of a part."""
    if part.name in tensors:
        return measure.values(tensors[part.name]).astype("<f4")
    names = part.name.removesuffix(DIGITS).removesuffix(UNIT).split(GROUP)
    units = np.concatenate([measured[name].units for name in names])
    if part.name.endswith(UNIT):
        return units.astype("<f4")
    columns = [_digits(measure.values(tensors[n]), measured[n].units, part.shape[1] // len(units)) for n in names]
    return np.concatenate(columns, -1).reshape(part.shape)


def _digits(w: Floats, units: NDArray[np.float64], count: int) -> NDArray[np.int8]:
    """[in, count, out]."""
    return digits.split(digits.integers(w, units), count).transpose(2, 0, 1)


def _limits(model: QModel, traced: Traced, measured: Mapping[str, measure.Matrix]) -> dict[str, float]:
    lengths = {name: matrix.lengths for name, matrix in measured.items()}
    limits: dict[str, float] = {}
    for layer in range(len(traced.layers)):
        bound = measure.bound(model.config, model.tensors, traced, lengths, layer)
        limits |= products.value_limits(layer, bound)
    return limits


def _file(program: Traced, nodes: list[Any], stored: list[Part], limits: Mapping[str, float]) -> bytes:
    from onnx import helper, numpy_helper

    inputs, outputs = signature(program)
    constants = [*program.graph.initializer]
    constants += [numpy_helper.from_array(np.float32(value), name) for name, value in limits.items()]
    graph = helper.make_graph(
        nodes, "decoder", inputs, outputs, [*constants, *external(stored, [(part, part) for part in stored])]
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", PRIMITIVES)],
        ir_version=IR_VERSION,
        producer_name="edgeqaf",
        producer_version=__version__,
    )
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw
