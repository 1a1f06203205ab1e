"""A quantized embedding in the graph: the rows that are looked up are decoded, and no other.

ONNX gathers nothing smaller than a byte, so the codes have a second name, NAME.bytes: the same bytes of the data file,
as one list. (And so have the scales in the form qdq: ONNX Runtime fuses no linear whose scales are read elsewhere.)
For each token and input the byte that holds the code is gathered, its bits are shifted down, and what
`decode` does follows, in the same order, so the floats have its bits. The nodes are called "NAME.lookup/...".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    shape, grid = kind
    assert grid is not None
    made = _Nodes(name, (shape[0], shape[1]), grid, {p.name: p for p in parts(name, shape, grid, form)}, ids)
    yield made.constant("last", np.array([-1]))
    yield made.constant("blocks", np.array([0, 0, shape[1] // grid.block, grid.block]))
    yield made.constant("flat", np.array([0, 0, shape[1]]))
    yield made.node("Unsqueeze", "tokens", ids, "/last")
    yield from made.integers("codes", "bytes", "codes", shape[1])
    yield made.node("Reshape", "split", "/codes", "/blocks")
    yield from made.floats("scale")
    result = "/split"
    if grid.zero is not Zero.OFFSET:
        yield from made.zero()
        yield made.node("Sub", "centred", result, "/zero")
        result = "/centred"
    yield made.node("Mul", "product", result, "/scale")
    result = "/product"
    if grid.zero is Zero.OFFSET:
        yield from made.floats("offset")
        yield made.node("Add", "sum", result, "/offset")
        result = "/sum"
    yield made.node("Reshape", "rows", result, "/flat", output=y)


@dataclass(frozen=True)
class _Nodes:
    """What one lookup is made of. A value that begins with a slash is its own."""

    name: str
    shape: tuple[int, int]
    grid: Grid
    held: Mapping[str, Part]
    ids: str

    def node(self, op: str, role: str, *inputs: str, output: str = "", **attributes: Any) -> Any:
        from onnx import helper

        prefix = f"{self.name}.lookup"
        values = [f"{prefix}{value}" if value.startswith("/") else value for value in inputs]
        return helper.make_node(op, values, [output or f"{prefix}/{role}"], name=f"{prefix}/{role}", **attributes)

    def constant(self, role: str, values: Any) -> Any:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.array(values), f"{self.name}.lookup/{role}")
        return self.node("Constant", role, value=tensor)

    def integers(self, role: str, view: str, stored: str, columns: int) -> Iterator[Any]:
        """Codes, or zero points, of the tokens' rows as floats: [batch, tokens, columns]."""
        part, width = self.held[f"{self.name}.{stored}"], WIDTHS[self.grid.bits]
        row = "/tokens"
        places = np.arange(columns, dtype=np.int64)
        if part.across:
            places *= part.shape[1]
        else:
            yield self.constant(f"{role}.line", np.int64(part.nbytes // self.shape[0] * (8 // width)))
            yield self.node("Mul", f"{role}.row", row, f"/{role}.line")
            row = f"/{role}.row"
        yield self.constant(f"{role}.places", places)
        yield self.node("Add", f"{role}.index", row, f"/{role}.places")
        if width == 8:
            yield self.node("Gather", f"{role}.bits", f"{self.name}.{view}", f"/{role}.index")
        else:
            yield from self._bits(role, view, width)
        yield self.node("Cast", f"{role}.unsigned", f"/{role}.bits", to=1)
        raised = 128.0 if not part.across and width == 8 else 0.0  # the operator's codes have no sign
        yield self.constant(f"{role}.raised", np.float32(raised))
        yield self.node("Sub", role, f"/{role}.unsigned", f"/{role}.raised")

    def _bits(self, role: str, view: str, width: int) -> Iterator[Any]:
        """A code out of the byte that holds it."""
        yield self.constant(f"{role}.each", np.int64(8 // width))
        yield self.constant(f"{role}.width", np.uint8(width))
        yield self.constant(f"{role}.mask", np.uint8(2**width - 1))
        yield self.node("Div", f"{role}.byte", f"/{role}.index", f"/{role}.each")
        yield self.node("Mod", f"{role}.lane", f"/{role}.index", f"/{role}.each")
        yield self.node("Cast", f"{role}.lane8", f"/{role}.lane", to=2)
        yield self.node("Mul", f"{role}.shift", f"/{role}.lane8", f"/{role}.width")
        yield self.node("Gather", f"{role}.shared", f"{self.name}.{view}", f"/{role}.byte")
        yield self.node("BitShift", f"{role}.shifted", f"/{role}.shared", f"/{role}.shift", direction="RIGHT")
        yield self.node("BitwiseAnd", f"{role}.bits", f"/{role}.shifted", f"/{role}.mask")

    def zero(self) -> Iterator[Any]:
        """What is taken off a code: a constant, or the block's own zero point."""
        if self.grid.zero is Zero.NONE:
            yield self.constant("zero", np.float32(zero_point(self.grid)))
            return
        yield from self.integers("points", "point_bytes", "zero_point", self.shape[1] // self.grid.block)
        yield self.node("Unsqueeze", "zero", "/points", "/last")

    def floats(self, role: str) -> Iterator[Any]:
        """A number of each block of the tokens' rows: [batch, tokens, blocks, 1]."""
        stored = f"{self.name}.{role}"
        if self.held[stored].across:
            stored = f"{self.name}.row_scale" if role == "scale" else stored
            yield self.node("Gather", f"{role}.columns", stored, self.ids, axis=1)
            yield self.node("Transpose", f"{role}.rows", f"/{role}.columns", perm=[1, 2, 0])
        else:
            yield self.node("Gather", f"{role}.rows", stored, self.ids, axis=0)
        yield self.node("Unsqueeze", role, f"/{role}.rows", "/last")
