"""Single linears and tensors cut out of an exported graph, in whichever form it has them.

Initializers point into the artifact's own data file. Of a grid with a float zero, `decoding` has the runtime compute
``((code - z) * scale + z * scale) + zero``; the first sum is exact, so it rounds once, as `decode` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.protocols import ALL

ROUNDING = ("quantize_x", "dequantize_x")  # what rounds activations in the graph: probes ask what the weights do


def linear(model: Any, codes: str, level: str | None = None, rounds: bool = False) -> Any:
    """The one-linear model cut from ``model``: all nodes named after the weight, ``[1, m, in] -> [1, m, out]``.

    level: the accuracy level of ONNX Runtime's own operator, where the linear is one; None: as it is exported.
    rounds: with what rounds activations in the graph, if anything does.
    Raises RuntimeAbsent for a matrix that is looked up and never multiplied.
    """
    from onnx import TensorProto, helper

    name = codes.removesuffix(".codes")
    found = [_at(node, level) for node in model.graph.node if node.name.startswith(f"{name}/")]
    passed = () if rounds else ROUNDING
    rounded = {value: node.input[0] for node in found if node.name.endswith(passed) for value in node.output[:1]}
    nodes = [node for node in found if not node.name.endswith(passed)]
    for node in nodes if rounded else ():  # x, before it is rounded, under the name of what it is rounded to
        node.input[:] = ["x" if value == f"{name}/x" else value for value in node.input]
    if not nodes and any(node.name.startswith(f"{name}.lookup/") for node in model.graph.node):
        raise RuntimeAbsent(f"{name} is looked up, and never multiplied", "its weights are compared in R1")
    made = {value for node in nodes for value in node.output}
    known = {t.name: t for t in model.graph.initializer}
    read = list(dict.fromkeys(value for node in nodes for value in node.input if value not in made))
    inputs = [value for value in read if value not in known]
    outputs = list(nodes[-1].output) if nodes else []
    if len(inputs) != 1 or len(outputs) != 1:
        raise Refused(f"{codes} is not the weight of one linear layer", "export the model again")
    rows, columns = _shape(known, nodes, codes)
    x = helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, [1, "m", columns])
    y = helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, [1, "m", rows])
    return cut(model, nodes, [x], [y], [known[value] for value in read if value in known])


def decoding(model: Any, name: str, rows: slice = ALL) -> Any:
    """A model without inputs whose output is one stored tensor, decoded by the runtime; quantized ones [out, in].

    rows: of a matrix, where not all are wanted. One that is looked up is looked up row by row, one of ONNX Runtime's
    own operator multiplied by ones.
    """
    from onnx import TensorProto, helper

    known = {t.name: t for t in model.graph.initializer}
    base = name.removesuffix(".codes")
    looked = [node for node in model.graph.node if node.name.startswith(f"{base}.lookup/")]
    if not name.endswith(".codes"):
        shown = [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(known[name].dims))]
        return cut(model, [helper.make_node("Identity", [name], ["y"])], [], shown, [known[name]])
    if looked:
        return _looked_up(model, known, base, looked, rows)
    return turned(_dequantized(model, known, base), rows)


def turned(model: Any, rows: slice) -> Any:
    """A model whose one output is a matrix as it is stored, [in, out], with some rows of [out, in] as its output."""
    from onnx import TensorProto, helper, numpy_helper

    (stored,) = model.graph.output
    columns, every = (dim.dim_value for dim in stored.type.tensor_type.shape.dim)
    chosen = range(every)[rows]
    for key, value in (("rows.start", chosen.start), ("rows.stop", chosen.stop), ("rows.axis", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), key))
    model.graph.node.append(helper.make_node("Slice", [stored.name, "rows.start", "rows.stop", "rows.axis"], ["some"]))
    model.graph.node.append(helper.make_node("Transpose", ["some"], ["rows"], perm=[1, 0]))
    stored.CopyFrom(helper.make_tensor_value_info("rows", TensorProto.FLOAT, [len(chosen), columns]))
    return model


def _looked_up(model: Any, known: Mapping[str, Any], base: str, nodes: Sequence[Any], wanted: slice) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    (flat,) = (n.attribute[0].t for n in nodes if n.name == f"{base}.lookup/flat")
    columns = int(numpy_helper.to_array(flat)[-1])
    codes = list(known[f"{base}.codes"].dims)
    rows = codes[1] if len(codes) == 2 else codes[0]
    ids = next(n.input[0] for n in nodes if n.name == f"{base}.lookup/tokens")
    made = {value for node in nodes for value in node.output}
    used = [known[v] for v in dict.fromkeys(v for n in nodes for v in n.input) if v not in made and v != ids]
    asked = {ids: np.arange(rows)[wanted][None], "first": np.array([0])}
    used += [numpy_helper.from_array(value, key) for key, value in asked.items()]
    first = helper.make_node("Squeeze", [nodes[-1].output[0], "first"], ["y"])
    shown = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(range(rows)[wanted]), columns])]
    return cut(model, [*nodes, first], [], shown, used)


def _dequantized(model: Any, known: Mapping[str, Any], base: str) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    own = [_at(node, "1") for node in model.graph.node if node.name.startswith(f"{base}/")]
    (first,) = (node for node in own if f"{base}.codes" in node.input)
    rows, columns = _shape(known, own, f"{base}.codes")
    apart = first.op_type == "MatMulNBits"  # it keeps an output's weights together, and scales likewise
    used = [known[value] for value in first.input if value in known]
    if apart:
        first.input[0] = "ones"
        used.append(numpy_helper.from_array(np.eye(columns, dtype=np.float32), "ones"))
    nodes, result, offset = [first], first.output[0], f"{base}.offset"
    if offset in known:
        (centre,) = (node for node in own if node.name == f"{base}/centre")
        blocks = known[offset].dims[1 if apart else 0]
        used += [known[offset], known[centre.input[1]]]
        for key, dims in (("split", [blocks, -1, rows]), ("per_block", [blocks, 1, rows]), ("shape", [columns, rows])):
            used.append(numpy_helper.from_array(np.array(dims, np.int64), key))
        turned = [
            helper.make_node("Transpose" if apart else "Identity", [value], [f"{value}.turned"])
            for value in (centre.output[0], offset)
        ]
        nodes += [
            centre,
            *turned,
            helper.make_node("Reshape", [result, "split"], ["term"]),
            helper.make_node("Reshape", [f"{centre.output[0]}.turned", "per_block"], ["shift"]),
            helper.make_node("Reshape", [f"{offset}.turned", "per_block"], ["zero"]),
            helper.make_node("Add", ["term", "shift"], ["product"]),
            helper.make_node("Add", ["product", "zero"], ["decoded"]),
            helper.make_node("Reshape", ["decoded", "shape"], ["y"]),
        ]
        result = "y"
    shown = [helper.make_tensor_value_info(result, TensorProto.FLOAT, [columns, rows])]
    return cut(model, nodes, [], shown, used)


def _shape(known: Mapping[str, Any], nodes: Sequence[Any], codes: str) -> tuple[int, int]:
    """[out, in] of a matrix."""
    for node in nodes:
        if node.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in node.attribute}
            return sizes["N"], sizes["K"]
    columns, rows = known[codes].dims
    return rows, columns


def _at(node: Any, level: str | None) -> Any:
    """A copy of a node, ONNX Runtime's own operator at that accuracy level."""
    copy = type(node)()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.name == "accuracy_level" and level is not None:
            attribute.i = int(level)
    return copy


def cut(whole: Any, nodes: Sequence[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any]) -> Any:
    """The model of some nodes of another."""
    from onnx import helper

    graph = helper.make_graph(nodes, "cut", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)


def data_files(model: Any) -> list[str]:
    """Names of the files that hold a model's tensors, relative to its folder."""
    stored = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return sorted({entry.value for entry in stored if entry.key == "location"})
