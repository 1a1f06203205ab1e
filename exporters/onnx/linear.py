"""A quantized weight in the graph: the linear layer that reads it, in the form that runtimes fuse.

    Transpose(NAME) -> MatMul        becomes        DequantizeLinear(axis=0, block_size) -> MatMul

A grid with a float zero has ``w = (code - z) * scale + (zero + z * scale)`` with a constant z in
the middle of the codes. Its second term is the same for a whole block of inputs, so it multiplies
the block's sum, and the first term is left in the form that runtimes fuse:

    y = x @ DequantizeLinear(codes) + blocksum(x) @ (zero + z * scale)

Every node of one linear carries its name and a slash ("NAME/matmul"), so that it can be cut out.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from exporters.onnx.parts import zero_point


def attach(nodes: Iterable[Any], grids: Mapping[str, Grid]) -> Iterator[Any]:
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


def constants(grids: Iterable[Grid]) -> Iterator[Any]:
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
