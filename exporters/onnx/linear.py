"""A quantized weight in the graph: the linear layer that reads it, in a form that runtimes fuse or have.

    Transpose(NAME) -> MatMul        becomes        DequantizeLinear(axis=0, block_size) -> MatMul     form qdq
                                     or             com.microsoft.MatMulNBits                          form matmulnbits

A grid with a float zero has ``w = (code - z) * scale + (zero + z * scale)`` with a constant z in
the middle of the codes. Its second term is the same for a whole block of inputs, so it multiplies
the block's sum, and the first term is left in the form that runtimes fuse:

    y = x @ DequantizeLinear(codes) + blocksum(x) @ (zero + z * scale)

With 8-bit activations x is rounded before either: DynamicQuantizeLinear -> DequantizeLinear.
Every node of one linear carries its name and a slash ("NAME/matmul"), so that it can be cut out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.exportoptions import OnnxOptions
from edgeqaf.grid import Grid, Zero
from edgeqaf.packing import WIDTHS
from exporters.onnx.lookup import lookup
from exporters.onnx.parts import TYPES, zero_point

MICROSOFT = "com.microsoft"
Kind = tuple[tuple[int, ...], Grid | None]  # a tensor's shape and grid; None for float


def attach(nodes: Iterable[Any], tensors: Mapping[str, Kind], asked: OnnxOptions) -> Iterator[Any]:
    """Replace what reads each quantized weight, ``Transpose -> MatMul`` or ``Gather``, by its quantized form."""
    grids = {name: grid for name, (_, grid) in tensors.items() if grid is not None}
    transposed: dict[str, str] = {}
    attached = set()
    for node in nodes:
        if node.op_type == "Transpose" and node.input[0] in grids:
            transposed[node.output[0]] = node.input[0]
        elif node.op_type == "MatMul" and node.input[1] in transposed:
            name = transposed[node.input[1]]
            attached.add(name)
            yield from linear(name, tensors[name], node.input[0], node.output[0], asked)
        elif node.op_type == "Gather" and node.input[0] in grids:
            name = node.input[0]
            attached.add(name)
            yield from lookup(name, tensors[name], node.input[1], node.output[0], asked.form)
        elif strays := [transposed.get(v, v) for v in node.input if transposed.get(v, v) in grids]:
            raise Refused(
                f"{strays[0]} is quantized but feeds {node.op_type}, not a linear layer", "keep this tensor in float"
            )
        else:
            yield node
    assert attached == set(grids)


def linear(name: str, kind: Kind, x: str, y: str, asked: OnnxOptions) -> Iterator[Any]:
    """``y = x @ W.T`` for a quantized W."""
    from onnx import helper

    (out, inputs), grid = kind
    assert grid is not None

    def node(op: str, role: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> Any:
        return helper.make_node(op, list(inputs), list(outputs), name=f"{name}/{role}", **attributes)

    codes, scale, point, offset = (f"{name}.{part}" for part in ("codes", "scale", "zero_point", "offset"))
    if asked.activations == "int8":
        rounded = [f"{name}/x.{part}" for part in ("codes", "scale", "zero_point")]
        yield node("DynamicQuantizeLinear", "quantize_x", [x], *rounded)
        yield node("DequantizeLinear", "dequantize_x", rounded, x := f"{name}/x")
    product = f"{name}/product" if grid.zero is Zero.OFFSET else y
    if asked.form == "qdq":
        yield node("DequantizeLinear", "dequantize", [codes, scale, point], name, axis=0, block_size=grid.block)
        yield node("MatMul", "matmul", [x, name], product)
    else:
        attributes = {"K": inputs, "N": out, "bits": WIDTHS[grid.bits], "block_size": grid.block}
        yield node(
            "MatMulNBits", "matmul", [x, codes, scale, point], product,
            domain=MICROSOFT, accuracy_level=asked.accuracy_level, **attributes,
        )  # fmt: skip
    if grid.zero is Zero.OFFSET:
        yield node("Mul", "centre", [scale, f"centre.{zero_point(grid)}"], f"{name}/centre")
        term = f"{name}/term"
        if asked.form == "qdq":
            yield node("Add", "term", [offset, f"{name}/centre"], term)
        else:
            yield node("Add", "rows", [offset, f"{name}/centre"], f"{name}/rows")
            yield node("Transpose", "term", [f"{name}/rows"], term, perm=[1, 0])
        yield node("Reshape", "blocks", [x, f"blocks.{grid.block}"], f"{name}/blocks")
        yield node("ReduceSum", "blocksum", [f"{name}/blocks", "last_axis"], f"{name}/blocksum", keepdims=0)
        yield node("MatMul", "offset_matmul", [f"{name}/blocksum", term], f"{name}/offset_product")
        yield node("Add", "sum", [product, f"{name}/offset_product"], y)


def constants(grids: Iterable[Grid]) -> Iterator[Any]:
    """What `linear` uses beside the weights, once each."""
    import numpy as np
    from onnx import numpy_helper

    offset = {(g.block, zero_point(g)) for g in grids if g.zero is Zero.OFFSET}
    if offset:
        yield numpy_helper.from_array(np.array([-1]), "last_axis")
    for block in sorted({block for block, _ in offset}):
        yield numpy_helper.from_array(np.array([0, 0, -1, block]), f"blocks.{block}")
    for point in sorted({point for _, point in offset}):
        yield numpy_helper.from_array(np.array(point, np.float32), f"centre.{point}")


def few_bits(grids: Iterable[Grid], asked: OnnxOptions) -> bool:
    """Whether an initializer has ONNX's type of 2 bits."""
    return asked.profile == "everyday" and asked.form == "qdq" and any(TYPES[grid.bits] == "UINT2" for grid in grids)
