"""Single linears and tensors cut out of a graph of the exact profile, whose matrices are digits, several side by side.

A matrix is ``unit * sum of 128**j * digit j``. `decoding` has the runtime add that up from the lowest digit on;
nothing rounds, as a weight has no more bits than a float32. `linear` is the program's own product, of which one
matrix's columns are kept.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.protocols import ALL
from runtime_tests.onnx.cut import cut, turned

HIGH, LOW, UNIT = ".high", ".low", ".unit"
BASE = 128


def holds(model: Any) -> bool:
    """Whether ``model`` is of the exact profile."""
    return any(t.name.endswith(HIGH) for t in model.graph.initializer)


def linear(model: Any, codes: str) -> Any:
    """As `runtime_tests.onnx.cut.linear`."""
    from onnx import TensorProto, helper

    name, known = codes.removesuffix(".codes"), {t.name: t for t in model.graph.initializer}
    group = _group(known, name)
    nodes = [node for node in model.graph.node if node.name.startswith(f"{group}/")]
    if not nodes and any(node.name.startswith(f"{group}.lookup/") for node in model.graph.node):
        raise RuntimeAbsent(f"{name} is looked up, and never multiplied", "its weights are compared in R1")
    if not nodes:
        raise Refused(f"{codes} is not the weight of one linear layer", "export the model again")
    out = nodes[-1].output[group.split("+").index(name)]
    columns = known[group + HIGH].dims[0]
    x = helper.make_tensor_value_info(nodes[0].input[0], TensorProto.FLOAT, [1, "m", columns])
    y = helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, "m", None])
    read = dict.fromkeys(value for node in nodes for value in node.input)
    return cut(model, nodes, [x], [y], [known[value] for value in read if value in known])


def decoding(model: Any, stored: str, rows: slice = ALL) -> Any:
    """As `runtime_tests.onnx.cut.decoding`."""
    from onnx import TensorProto, helper, numpy_helper

    name, known = stored.removesuffix(".codes"), {t.name: t for t in model.graph.initializer}
    if name == stored:
        shown = [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(known[name].dims))]
        return cut(model, [helper.make_node("Identity", [name], ["y"])], [], shown, [known[name]])
    group = _group(known, name)
    high, unit = known[group + HIGH], known[group + UNIT]
    columns, total = high.dims
    low = [known[group + LOW]] if group + LOW in known else []
    each = [f"digit.{j}" for part in low for j in range(part.dims[1] // total)]
    nodes = [helper.make_node("Split", [part.name], each, axis=-1, num_outputs=len(each)) for part in low]
    each.append(high.name)
    for j, digit in enumerate(each):
        nodes.append(helper.make_node("Cast", [digit], [f"float.{j}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"float.{j}", f"power.{j}"], [f"term.{j}"]))
        nodes.append(helper.make_node("Add", [f"sum.{j - 1}" if j else "zero", f"term.{j}"], [f"sum.{j}"]))
    widths = _widths(model, group, total)
    parts = [f"matrix.{i}" for i in range(len(widths))]
    nodes.append(helper.make_node("Mul", [f"sum.{len(each) - 1}", unit.name], ["weights"]))
    nodes.append(helper.make_node("Split", ["weights", "widths"], parts, axis=-1))
    constants = {f"power.{j}": np.float32(BASE**j) for j in range(len(each))}
    used = [numpy_helper.from_array(value, key) for key, value in (constants | {"zero": np.float32(0)}).items()]
    used.append(numpy_helper.from_array(np.array(widths, np.int64), "widths"))
    member = group.split("+").index(name)
    shown = [helper.make_tensor_value_info(parts[member], TensorProto.FLOAT, [columns, widths[member]])]
    return turned(cut(model, nodes, [], shown, [high, *low, unit, *used]), rows)


def _group(known: Mapping[str, Any], name: str) -> str:
    """The group that a matrix is of."""
    groups = (part.removesuffix(HIGH) for part in known if part.endswith(HIGH))
    for group in groups:
        if name in group.split("+"):
            return group
    raise Refused(f"no digits of {name}", "export the model again")


def _widths(model: Any, group: str, total: int) -> list[int]:
    """The columns of each matrix of a group, as the program splits its product."""
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    found = [node.input[1] for node in model.graph.node if node.name == f"{group}/split"]
    return [int(n) for n in numpy_helper.to_array(constants[found[0]])] if found else [total]
