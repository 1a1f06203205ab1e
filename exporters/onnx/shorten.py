"""The traced program in fewer nodes, where torch's exporter is wordy; its values stay what they are.

``x * (1 / s)`` becomes ``x / s``, the form of an RMS norm that runtimes fuse. A reshape to lengths computed in
the graph becomes one that names which lengths stay, so that runtimes know every shape and compute none.
"""

from collections.abc import Sequence
from typing import Any

Shape = Sequence[int | str]  # lengths, or names of those that are not fixed


def shorten(graph: Any) -> None:
    """Rewrite an onnx.GraphProto, whose ``value_info`` names all shapes, in place."""
    _divide(graph)
    _fix_reshapes(graph)
    _drop_unused(graph)


def _divide(graph: Any) -> None:
    divisors = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reciprocal"}
    for node in graph.node:
        if node.op_type == "Mul" and sum(value in divisors for value in node.input) == 1:
            x, reciprocal = sorted(node.input, key=divisors.__contains__)
            node.op_type, node.input[:] = "Div", [x, divisors[reciprocal]]


def _fix_reshapes(graph: Any) -> None:
    import numpy as np
    from onnx import numpy_helper

    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] in known:
            continue
        lengths = _lengths(shapes[node.input[0]], shapes[node.output[0]])
        if lengths.count(-1) > 1:
            continue
        name = "shape." + ".".join(map(str, lengths))
        if name not in known:
            known.add(name)
            graph.initializer.append(numpy_helper.from_array(np.array(lengths, np.int64), name))
        node.input[1] = name
        del node.attribute[:]  # allowzero, by which a 0 would be no length to keep


def _lengths(before: Shape, after: Shape) -> list[int]:
    """What Reshape is told: 0 for a length that stays where it is, -1 for one that follows from the others."""
    stays = [i < len(before) and before[i] == length for i, length in enumerate(after)]
    return [n if isinstance(n, int) else 0 if same else -1 for n, same in zip(after, stays, strict=True)]


def _shape(value: Any) -> Shape:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


def _drop_unused(graph: Any) -> None:
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)
