"""From the traced layer to the ONNX model: stack the layers, attach the weights.

Copies of the traced layer are chained from mark to mark. Then each weight, an input of the traced
graph, becomes an initializer whose bytes lie in the data file, and where the weight is quantized

    Transpose(NAME) -> MatMul        becomes        DequantizeLinear(axis=0, block_size) -> MatMul

A grid with a float zero has ``w = (code - z) * scale + (zero + z * scale)`` with a constant z in
the middle of the codes. Its second term is the same for a whole block of inputs, so it multiplies
the block's sum, and the first term is left in the form that runtimes fuse:

    y = x @ DequantizeLinear(codes) + blocksum(x) @ (zero + z * scale)

Every node of one linear carries its name and a slash ("NAME/matmul"), so that it can be cut out.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgeqaf import __version__
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from exporters.onnx.parts import TYPES, parts, place, zero_point
from exporters.onnx.trace import INPUTS, LAYER_INPUT, LAYER_OUTPUT, OPSET, Traced

IR_VERSION = 10
UINT2_VERSIONS = 13, 25  # the first IR and opset with UINT2; newer forms of what we use differ in types alone
Kind = tuple[tuple[int, ...], Grid | None]  # a tensor's shape and grid; None for float
MODEL, DATA = "model.onnx", "model.onnx.data"
GRIDS = "edgeqaf.grids"  # metadata key: {logical name: grid name} of the quantized tensors, as JSON
_FIRST = re.compile(r"\b(layers|past_key_values|present)\.0\.")


def build(traced: Traced, layers: int, tensors: Mapping[str, Kind]) -> Any:
    """The onnx.ModelProto that runs ``tensors`` in ``layers`` copies of the traced layer.

    Raises Refused, naming them, for tensors that the architecture lacks or that have no place in it.
    """
    from onnx import helper

    _check_tensors(traced, layers, tensors)
    grids = {name: grid for name, (_, grid) in sorted(tensors.items()) if grid is not None}
    nodes = list(_attach(_stack(traced, layers), grids))
    inputs, outputs = _signature(traced, layers)
    constants = [*(_clean(c) for c in traced.graph.initializer), *_constants(grids.values())]
    initializers = [*constants, *_external(tensors)]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, initializers)
    ir, opset = versions(grids.values())
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir,
        producer_name="edgeqaf",
        producer_version=__version__,
    )
    helper.set_model_props(model, {GRIDS: json.dumps({n: g.name for n, g in grids.items()}, separators=(",", ":"))})
    return model


def versions(grids: Iterable[Grid]) -> tuple[int, int]:
    """IR version and opset of a model on these grids: the oldest that have its types, so that most runtimes load it."""
    return UINT2_VERSIONS if any(TYPES[grid.bits] == "UINT2" for grid in grids) else (IR_VERSION, OPSET)


def at(name: str, layer: int) -> str:
    """A name that belongs to the traced layer, as it is called in copy ``layer``."""
    return _FIRST.sub(lambda match: f"{match[1]}.{layer}.", name)


def _check_tensors(traced: Traced, layers: int, tensors: Mapping[str, Kind]) -> None:
    wanted = {
        at(name, i): shape
        for name, shape in traced.weights.items()
        for i in range(layers if _FIRST.search(name) else 1)
    }
    if missing := sorted(set(wanted) - set(tensors)):
        raise Refused(f"no tensor {', '.join(missing)}, which config.json asks for", "check config.json")
    if foreign := sorted(set(tensors) - set(wanted)):
        raise Refused(f"the graph has no place for {', '.join(foreign)}", "check config.json")
    for name, shape in wanted.items():
        if tensors[name][0] != shape:
            raise Refused(f"{name}: shape {tensors[name][0]}, config.json makes it {shape}", "check config.json")


def _stack(traced: Traced, layers: int) -> Iterator[Any]:
    """Nodes before the layer, the layer ``layers`` times, nodes after it; metadata removed."""
    nodes = [_clean(node) for node in traced.graph.node]
    own = {name for name in traced.weights if _FIRST.search(name)}
    after = _reached(nodes, {LAYER_OUTPUT})
    layer = _reached(nodes, {LAYER_INPUT, *own}) - after
    made = {value for i in layer for value in nodes[i].output}
    yield from (node for i, node in enumerate(nodes) if i not in layer | after)
    for copy in range(layers):
        yield from (_copy(nodes[i], copy, made) for i in sorted(layer))
    last = {LAYER_OUTPUT: _value(LAYER_OUTPUT, layers - 1, made)}
    for node in (nodes[i] for i in sorted(after)):
        leaked = made.intersection(node.input) - {LAYER_OUTPUT}
        assert not leaked, f"the traced layer leaks {leaked}"
        node.input[:] = [last.get(value, value) for value in node.input]
        yield node


def _reached(nodes: list[Any], start: set[str]) -> set[int]:
    """Indices of the nodes that depend on one of the values ``start``."""
    values, found = set(start), set()
    for i, node in enumerate(nodes):
        if values.intersection(node.input):
            values.update(node.output)
            found.add(i)
    return found


def _copy(node: Any, layer: int, made: set[str]) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = f"layers.{layer}/{node.name}"
    copy.output[:] = [_value(value, layer, made) for value in node.output]
    copy.input[:] = [_value(value, layer, made) for value in node.input]
    return copy


def _value(value: str, layer: int, made: set[str]) -> str:
    if value == LAYER_INPUT:
        return value if layer == 0 else _value(LAYER_OUTPUT, layer - 1, made)
    if _FIRST.search(value):  # a weight or a cache, named after its layer
        return at(value, layer)
    return f"layers.{layer}/{value}" if value in made else value


def _attach(nodes: Iterable[Any], grids: Mapping[str, Grid]) -> Iterator[Any]:
    """Replace ``Transpose -> MatMul`` of each quantized weight by its quantized form."""
    transposed: dict[str, str] = {}
    attached = set()
    for node in nodes:
        if node.op_type == "Transpose" and node.input[0] in grids:
            transposed[node.output[0]] = node.input[0]
        elif node.op_type == "MatMul" and node.input[1] in transposed:
            name = transposed[node.input[1]]
            attached.add(name)
            yield from _linear(name, grids[name], node.input[0], node.output[0])
        elif strays := [transposed.get(v, v) for v in node.input if transposed.get(v, v) in grids]:
            raise Refused(
                f"{strays[0]} is quantized but feeds {node.op_type}, not a linear layer", "keep this tensor in float"
            )
        else:
            yield node
    assert attached == set(grids)


def _linear(name: str, grid: Grid, x: str, y: str) -> Iterator[Any]:
    """``y = x @ W.T`` for a quantized W, in the form that ONNX Runtime fuses to MatMulNBits."""
    from onnx import helper

    def node(op: str, role: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs, [output], name=f"{name}/{role}", **attributes)

    codes, scale, point, offset = (f"{name}.{part}" for part in ("codes", "scale", "zero_point", "offset"))
    product = f"{name}/product" if grid.zero is Zero.OFFSET else y
    yield node("DequantizeLinear", "dequantize", [codes, scale, point], name, axis=0, block_size=grid.block)
    yield node("MatMul", "matmul", [x, name], product)
    if grid.zero is Zero.OFFSET:
        yield node("Mul", "centre", [scale, f"centre.{zero_point(grid)}"], f"{name}/centre")
        yield node("Add", "term", [offset, f"{name}/centre"], f"{name}/term")
        yield node("Reshape", "blocks", [x, f"blocks.{grid.block}"], f"{name}/blocks")
        yield node("ReduceSum", "blocksum", [f"{name}/blocks", "last_axis"], f"{name}/blocksum", keepdims=0)
        yield node("MatMul", "offset_matmul", [f"{name}/blocksum", f"{name}/term"], f"{name}/offset_product")
        yield node("Add", "sum", [product, f"{name}/offset_product"], y)


def _constants(grids: Iterable[Grid]) -> Iterator[Any]:
    """What `_linear` uses beside the weights, once each."""
    import numpy as np
    from onnx import numpy_helper

    offset = {(g.block, zero_point(g)) for g in grids if g.zero is Zero.OFFSET}
    if offset:
        yield numpy_helper.from_array(np.array([-1]), "last_axis")
    for block in sorted({block for block, _ in offset}):
        yield numpy_helper.from_array(np.array([0, 0, -1, block]), f"blocks.{block}")
    for point in sorted({point for _, point in offset}):
        yield numpy_helper.from_array(np.array(point, np.float32), f"centre.{point}")


def _external(tensors: Mapping[str, Kind]) -> Iterator[Any]:
    """Initializers of all weights, their bytes at their places in the data file."""
    from onnx import TensorProto

    stored = [part for name, (shape, grid) in tensors.items() for part in parts(name, shape, grid)]
    offsets, _ = place(stored)
    for part in sorted(stored, key=lambda p: p.name):
        tensor = TensorProto(name=part.name, dims=part.shape, data_type=TensorProto.DataType.Value(part.type))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", offsets[part.name]), ("length", part.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        yield tensor


def _signature(traced: Traced, layers: int) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs, named as optimum's ORTModelForCausalLM and onnxruntime-genai expect them."""
    from onnx import TensorProto, helper

    def cache(name: str, length: str) -> Iterator[Any]:
        for i in range(layers):
            for part in ("key", "value"):
                dims = ["batch_size", traced.kv_heads, length, traced.head_dim]
                yield helper.make_tensor_value_info(f"{name}.{i}.{part}", TensorProto.FLOAT, dims)

    total = "total_sequence_length"
    lengths = dict(zip(INPUTS, ("sequence_length", total, "sequence_length"), strict=True))
    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch_size", d]) for n, d in lengths.items()]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", traced.vocab])
    return [*ids, *cache("past_key_values", "past_sequence_length")], [logits, *cache("present", total)]


def _clean(proto: Any) -> Any:
    """A copy without what torch leaves in it: stack traces with paths, source lines, notes."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.ClearField("metadata_props")
    copy.ClearField("doc_string")
    return copy
