"""What goes into and comes out of each quantized linear while ONNX Runtime runs a model: both as outputs of the graph.

An output must be kept, so ONNX Runtime could leave out a fusion that would have swallowed it, and compute otherwise.
Whoever taps compares the logits with those of the model as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Linear:
    """One linear with a quantized matrix. name: of the matrix; x, y: of its input and output in the graph."""

    name: str
    x: str
    y: str


def linears(model: Any) -> Iterator[Linear]:
    """Every one, in the order in which they run; an embedding that is only looked up is none."""
    codes = {t.name.removesuffix(".codes") for t in model.graph.initializer if t.name.endswith(".codes")}
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for node in model.graph.node:
        name, _, role = node.name.rpartition("/")
        if name in codes:
            outputs[name] = node.output[0]
            if role == "matmul":
                inputs[name] = node.input[0]
    return (Linear(name, inputs[name], y) for name, y in outputs.items() if name in inputs)


def tapped(model: Any, chosen: Iterable[Linear]) -> Any:
    """A copy of ``model`` that shows ``chosen`` too; what is an input of the graph is not shown again."""
    from onnx import TensorProto, helper

    copy = type(model)()
    copy.CopyFrom(model)
    shown = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    for value in dict.fromkeys(value for linear in chosen for value in (linear.x, linear.y)):
        if value not in shown:
            copy.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    return copy


def groups(
    chosen: Iterable[Linear], shapes: Mapping[str, tuple[int, int]], rows: int, most: int
) -> list[Sequence[Linear]]:
    """``chosen`` in groups whose inputs and outputs of ``rows`` rows take ``most`` bytes, or one linear at a time."""
    found: list[list[Linear]] = []
    held = most
    for linear in chosen:
        size = 4 * rows * sum(shapes[linear.name])
        if not found or held + size > most:
            found.append([])
            held = 0
        found[-1].append(linear)
        held += size
    return list(found)
