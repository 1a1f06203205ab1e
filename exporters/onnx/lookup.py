"""A quantized embedding in the graph: the rows that are looked up are decoded, and no other.

ONNX gathers nothing smaller than a byte, so the codes have a second name, NAME.bytes: the same bytes of the data file,
as one list. (And so have the scales in the form qdq: ONNX Runtime fuses no linear whose scales are read elsewhere.)
For each token and input the byte that holds the code is gathered, its bits are shifted down, and what
`decode` does follows, in the same order, so the floats have its bits. The nodes are called "NAME.lookup/...".
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from edgeqaf.exportoptions import Form
from edgeqaf.grid import Grid, Zero
from edgeqaf.packing import WIDTHS
from exporters.onnx.parts import Part, parts, zero_point

Kind = tuple[tuple[int, ...], Grid | None]


def views(name: str, kind: Kind, form: Form) -> list[tuple[Part, Part]]:
    """(second name, part whose bytes it names) of the parts that are gathered by byte."""
    shape, grid = kind
    held = {part.name: part for part in parts(name, shape, grid, form)}
    wanted = ["codes", "zero_point"] if grid is not None and grid.zero is Zero.CODE else ["codes"]
    found = [
        (f"{name}.{new}", held[f"{name}.{old}"]) for new, old in zip(("bytes", "point_bytes"), wanted, strict=False)
    ]
    second = [(Part(new, "INT8" if old.type == "INT8" else "UINT8", (old.nbytes,)), old) for new, old in found]
    scale = held[f"{name}.scale"]
    return [*second, (replace(scale, name=f"{name}.row_scale"), scale)] if scale.across else second


def lookup(name: str, kind: Kind, ids: str, y: str, form: Form) -> Iterator[Any]:
    """``y = decode(W)[ids]`` for a quantized W: ids [batch, tokens] -> y [batch, tokens, in]."""
    from onnx import helper

    shape, grid = kind
    assert grid is not None
    held = {part.name: part for part in parts(name, shape, grid, form)}
    blocks, prefix = shape[1] // grid.block, f"{name}.lookup"

    def node(op: str, inputs: list[str], role: str, output: str = "", **attributes: Any) -> Any:
        return helper.make_node(op, inputs, [output or f"{prefix}/{role}"], name=f"{prefix}/{role}", **attributes)

    def constant(role: str, values: Any) -> Any:
        from onnx import numpy_helper

        return node("Constant", [], role, value=numpy_helper.from_array(np.array(values), f"{prefix}/{role}"))

    def integers(role: str, stored: str, part: Part) -> Iterator[Any]:
        """The codes of the tokens' rows as floats: [batch, tokens, columns]."""
        width = WIDTHS[grid.bits]
        columns = shape[1] if role == "codes" else blocks
        line = part.shape[1] if part.across else part.nbytes // shape[0] * (8 // width)
        places = np.arange(columns, dtype=np.int64) * (line if part.across else 1)
        yield constant(f"{role}.places", places)
        row = f"{prefix}/tokens"
        if not part.across:
            yield constant(f"{role}.line", np.int64(line))
            yield node("Mul", [row, f"{prefix}/{role}.line"], f"{role}.row")
            row = f"{prefix}/{role}.row"
        yield node("Add", [row, f"{prefix}/{role}.places"], f"{role}.index")
        index = f"{prefix}/{role}.index"
        if width == 8:
            yield node("Gather", [stored, index], f"{role}.bits")
        else:
            yield constant(f"{role}.each", np.int64(8 // width))
            yield constant(f"{role}.width", np.uint8(width))
            yield constant(f"{role}.mask", np.uint8(2**width - 1))
            yield node("Div", [index, f"{prefix}/{role}.each"], f"{role}.byte")
            yield node("Mod", [index, f"{prefix}/{role}.each"], f"{role}.lane")
            yield node("Cast", [f"{prefix}/{role}.lane"], f"{role}.lane8", to=2)
            yield node("Mul", [f"{prefix}/{role}.lane8", f"{prefix}/{role}.width"], f"{role}.shift")
            yield node("Gather", [stored, f"{prefix}/{role}.byte"], f"{role}.shared")
            shared = [f"{prefix}/{role}.shared", f"{prefix}/{role}.shift"]
            yield node("BitShift", shared, f"{role}.shifted", direction="RIGHT")
            yield node("BitwiseAnd", [f"{prefix}/{role}.shifted", f"{prefix}/{role}.mask"], f"{role}.bits")
        yield node("Cast", [f"{prefix}/{role}.bits"], f"{role}.unsigned", to=1)
        raised = 128.0 if not part.across and grid.bits == 8 else 0.0  # the operator's codes have no sign
        yield constant(f"{role}.raised", np.float32(raised))
        yield node("Sub", [f"{prefix}/{role}.unsigned", f"{prefix}/{role}.raised"], role)

    def floats(role: str) -> Iterator[Any]:
        """A number of each block of the tokens' rows: [batch, tokens, blocks, 1]."""
        if held[f"{name}.{role}"].across:
            stored = f"{name}.row_scale" if role == "scale" else f"{name}.{role}"
            yield node("Gather", [stored, ids], f"{role}.columns", axis=1)
            yield node("Transpose", [f"{prefix}/{role}.columns"], f"{role}.rows", perm=[1, 2, 0])
        else:
            yield node("Gather", [f"{name}.{role}", ids], f"{role}.rows", axis=0)
        yield node("Unsqueeze", [f"{prefix}/{role}.rows", f"{prefix}/last"], role)

    yield constant("last", np.array([-1]))
    yield constant("blocks", np.array([0, 0, blocks, grid.block]))
    yield constant("flat", np.array([0, 0, shape[1]]))
    yield node("Unsqueeze", [ids, f"{prefix}/last"], "tokens")
    yield from integers("codes", f"{name}.bytes", held[f"{name}.codes"])
    yield node("Reshape", [f"{prefix}/codes", f"{prefix}/blocks"], "split")
    yield from floats("scale")
    factor = "split"
    if grid.zero is Zero.CODE:
        yield from integers("points", f"{name}.point_bytes", held[f"{name}.zero_point"])
        yield node("Unsqueeze", [f"{prefix}/points", f"{prefix}/last"], "zero")
        yield node("Sub", [f"{prefix}/split", f"{prefix}/zero"], "centred")
        factor = "centred"
    elif grid.zero is Zero.NONE:
        yield constant("centre", np.float32(zero_point(grid)))
        yield node("Sub", [f"{prefix}/split", f"{prefix}/centre"], "centred")
        factor = "centred"
    yield node("Mul", [f"{prefix}/{factor}", f"{prefix}/scale"], "product")
    decoded = "product"
    if grid.zero is Zero.OFFSET:
        yield from floats("offset")
        yield node("Add", [f"{prefix}/product", f"{prefix}/offset"], "sum")
        decoded = "sum"
    yield node("Reshape", [f"{prefix}/{decoded}", f"{prefix}/flat"], "rows", y)
