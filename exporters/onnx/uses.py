"""Whether a graph reads each quantized tensor as the exporter would have it read, node for node."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.exportoptions import OnnxOptions
from exporters.onnx.linear import Kind, linear
from exporters.onnx.lookup import lookup
from exporters.onnx.opened import AGAIN

LOOKUP = ".lookup"
PARTS = ("codes", "scale", "zero_point", "offset", "bytes", "point_bytes", "row_scale")


def check_uses(graph: Any, tensors: Mapping[str, Kind], asked: OnnxOptions) -> None:
    """Refuse a graph that reads a quantized tensor in other nodes than `linear` and `lookup` make, or a float in none.

    What enters and leaves those nodes is the program's: their first input and last output.
    """
    read = {value for node in graph.node for value in node.input}
    owners: dict[str, list[Any]] = {}
    for node in graph.node:
        owners.setdefault(node.name.rpartition("/")[0], []).append(node)
    for name, kind in tensors.items():
        if kind[1] is None:
            if name not in read:
                raise Refused(f"{name} is not used by any node", AGAIN)
            continue
        looked, multiplied = owners.pop(f"{name}{LOOKUP}", []), owners.pop(name, [])
        if not looked and not multiplied:
            raise Refused(f"{name} is quantized and no linear layer or lookup reads it", AGAIN)
        if multiplied:
            x, y = _first_input(multiplied, asked), multiplied[-1].output[0]
            _require_same(name, multiplied, list(linear(name, kind, x, y, asked)))
        if looked:
            ids = next(node.input[0] for node in looked if node.op_type == "Unsqueeze")
            _require_same(name, looked, list(lookup(name, kind, ids, looked[-1].output[0], asked.form)))
    quantized = [name for name, kind in tensors.items() if kind[1] is not None]
    own = {f"{name}.{part}" for name in quantized for part in PARTS}
    for nodes in owners.values():
        for node in nodes:
            if strays := own.intersection(node.input):
                raise Refused(f"{min(strays)} is read by {node.name} too", AGAIN)


def _first_input(nodes: Sequence[Any], asked: OnnxOptions) -> str:
    wanted = "DynamicQuantizeLinear" if asked.activations == "int8" else "MatMul"
    return next((node.input[0] for node in nodes if node.op_type.startswith(wanted) and node.input), "")


def _require_same(name: str, found: Sequence[Any], wanted: Sequence[Any]) -> None:
    if len(found) != len(wanted):
        raise Refused(f"{name} is read by {len(found)} nodes, expected {len(wanted)}", AGAIN)
    for node, expected in zip(found, wanted, strict=True):
        if node.SerializeToString(deterministic=True) != expected.SerializeToString(deterministic=True):
            raise Refused(f"{node.name}: {node.op_type} of {list(node.input)} is not as edgeqaf writes it", AGAIN)
