"""Whether a graph multiplies by, and looks up, the digits of matrices as the exact profile has it, node for node."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.exportoptions import OnnxOptions
from exporters.onnx.exact import products
from exporters.onnx.exact.columns import GROUP, HIGH, LOW, UNIT
from exporters.onnx.exact.emit import Emit
from exporters.onnx.linear import Kind
from exporters.onnx.opened import AGAIN
from exporters.onnx.uses import LOOKUP


def check_uses(
    graph: Any, tensors: Mapping[str, Kind], groups: Mapping[tuple[str, ...], int], asked: OnnxOptions
) -> None:
    """Refuse a graph that reads a group's digits in other nodes than `products` makes, or a tensor nowhere.

    What enters and leaves those nodes is the program's: their first input and what the last gives.
    """
    read = {value for node in graph.node for value in node.input}
    multiplied = {name for names in groups for name in names}
    for name in tensors:
        if name not in multiplied and name not in read:
            raise Refused(f"{name} is not used by any node", AGAIN)
    owners: dict[str, list[Any]] = {}
    for node in graph.node:
        owners.setdefault(node.name.rpartition("/")[0], []).append(node)
    constants = {t.name: _value(t) for t in graph.initializer if not t.external_data}
    for names, digits in groups.items():
        group = GROUP.join(names)
        looked, used = owners.pop(f"{group}{LOOKUP}", []), owners.pop(group, [])
        if not looked and not used:
            raise Refused(f"{group}: no product or lookup reads its digits", AGAIN)
        if used:
            emit = Emit()
            emit.scope(group)
            outs, widths = list(used[-1].output), [tensors[name][0][0] for name in names]
            products.linears(emit, used[0].input[0], group, digits, asked.activations, widths, outs)
            _require_same(group, used, emit, constants)
        if looked:
            emit = Emit()
            emit.scope(f"{group}{LOOKUP}")
            rows = tensors[names[0]][0][0]
            products.lookup(emit, group, digits, rows, looked[0].input[0], looked[-1].output[0])
            _require_same(group, looked, emit, constants)
    own = {f"{GROUP.join(names)}{part}" for names in groups for part in (HIGH, LOW, UNIT)}
    for node in (node for nodes in owners.values() for node in nodes):
        if strays := own.intersection(node.input):
            raise Refused(f"{min(strays)} is read by {node.name} too", AGAIN)


def _value(tensor: Any) -> tuple[int, tuple[int, ...], bytes]:
    from onnx import numpy_helper

    return tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()


def _require_same(group: str, found: Sequence[Any], emit: Emit, constants: Mapping[str, Any]) -> None:
    """Constants may have other names: equal ones are held once in a program."""
    if len(found) != len(emit.nodes):
        raise Refused(f"{group} is read by {len(found)} nodes, expected {len(emit.nodes)}", AGAIN)
    wanted = {t.name: _value(t) for t in emit.initializers()}
    for node, expected in zip(found, emit.nodes, strict=True):
        given = [constants.get(value, value) for value in node.input], list(node.output), node.name, node.op_type
        right = (
            [wanted.get(value, value) for value in expected.input], list(expected.output), expected.name,
            expected.op_type,
        )  # fmt: skip
        if given != right or sorted(map(str, node.attribute)) != sorted(map(str, expected.attribute)):
            raise Refused(f"{node.name}: {node.op_type} of {list(node.input)} is not as edgeqaf writes it", AGAIN)
