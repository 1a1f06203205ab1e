"""Single tensors and linears, cut out of an exported graph as models of their own.

Their initializers still point into the artifact's own data file, so a runtime reads what was shipped.
Of a grid with a float zero (`Form.TWO_TERM`), `decoding` has the runtime compute
``((code - z) * scale + z * scale) + zero``; the first sum is exact, so it rounds once, as `decode` does.
"""

from typing import Any

import numpy as np

from edgeqaf.errors import Refused


def linear(model: Any, codes: str) -> Any:
    """The one-linear model cut from ``model``: all nodes named after the weight, ``[1, m, in] -> [1, m, out]``."""
    from onnx import TensorProto, helper

    prefix = codes.removesuffix(".codes") + "/"
    nodes = [node for node in model.graph.node if node.name.startswith(prefix)]
    made = {value for node in nodes for value in node.output}
    known = {t.name: t for t in model.graph.initializer}
    read = list(dict.fromkeys(value for node in nodes for value in node.input if value not in made))
    inputs = [value for value in read if value not in known]
    outputs = list(nodes[-1].output) if nodes else []
    if len(inputs) != 1 or len(outputs) != 1:
        raise Refused(f"{codes} is not the weight of one linear layer", "export the model again")
    columns, rows = known[codes].dims
    x = helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, [1, "m", columns])
    y = helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, [1, "m", rows])
    return _model(model, nodes, [x], [y], [known[value] for value in read if value in known])


def decoding(model: Any, name: str) -> Any:
    """A model without inputs whose output is one stored tensor, decoded by the runtime."""
    from onnx import TensorProto, helper, numpy_helper

    known = {t.name: t for t in model.graph.initializer}
    reads = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] == name]
    shape = list(known[name].dims)
    if not reads:
        nodes, used = [helper.make_node("Identity", [name], ["y"])], [known[name]]
        return _model(model, nodes, [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], used)
    nodes, used = [reads[0]], [known[value] for value in reads[0].input]
    result, offset = reads[0].output[0], name.removesuffix("codes") + "offset"
    if offset in known:
        scale, (blocks, rows) = reads[0].input[1], known[offset].dims
        (centre,) = (n for n in model.graph.node if n.op_type == "Mul" and n.input[0] == scale)
        per_block = [blocks, 1, rows]
        used += [known[offset], known[centre.input[1]]]
        for key, dims in (("split", [blocks, -1, rows]), ("per_block", per_block), ("shape", shape)):
            used.append(numpy_helper.from_array(np.array(dims, np.int64), key))
        nodes += [
            centre,
            helper.make_node("Reshape", [result, "split"], ["term"]),
            helper.make_node("Reshape", [centre.output[0], "per_block"], ["shift"]),
            helper.make_node("Reshape", [offset, "per_block"], ["zero"]),
            helper.make_node("Add", ["term", "shift"], ["product"]),
            helper.make_node("Add", ["product", "zero"], ["decoded"]),
            helper.make_node("Reshape", ["decoded", "shape"], ["y"]),
        ]
        result = "y"
    return _model(model, nodes, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)], used)


def _model(whole: Any, nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any]) -> Any:
    from onnx import helper

    graph = helper.make_graph(nodes, "cut", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)


def data_files(model: Any) -> list[str]:
    """Names of the files that hold a model's tensors, relative to its folder."""
    stored = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return sorted({entry.value for entry in stored if entry.key == "location"})
