"""How one logical tensor is stored: its parts, and where each lies in the data file.

A float tensor is one float32 part under its own name, [out, in]. A quantized one, in the form ``qdq``, is transposed,
since ONNX Runtime fuses ``DequantizeLinear(axis=0) -> MatMul`` only for weights stored [in, out]:

    NAME.codes       UINT2, UINT4 or INT8   [in, out]           the stored integers, unchanged
    NAME.scale       FLOAT                  [in / block, out]   float32 holding the float16 value
    NAME.zero_point  like codes             [in / block, out]   always explicit
    NAME.offset      FLOAT                  [in / block, out]   grids with a float zero: that zero, unchanged

In the form ``matmulnbits`` it lies as ONNX Runtime's operator takes it, an output's weights together:

    NAME.codes       UINT8   [out, in / block, block * bits / 8]   codes of 8 bits plus 128
    NAME.scale       FLOAT   [out, in / block]
    NAME.zero_point  UINT8   [out, in / block * bits / 8]          a row's last byte filled up with zeros
    NAME.offset      FLOAT   [out, in / block]

Codes of 3 bits are stored in 4; the values mean the same, and reading back refuses one beyond 7.
Two 4-bit or four 2-bit values share a byte, earlier ones in lower bits. Parts lie in the order of
their names, each at the next multiple of 64 bytes, with zeros between.
"""

import math
from dataclasses import dataclass

from edgeqaf.exportoptions import Form
from edgeqaf.grid import Grid, Zero
from edgeqaf.packing import WIDTHS
from edgeqaf.protocols import StoredAs

ALIGNMENT = 64
BLOCKS = (16, 32, 64, 128, 256)  # the block sizes that ONNX Runtime fuses to MatMulNBits
TYPES = {2: "UINT2", 3: "UINT4", 4: "UINT4", 8: "INT8"}  # bits of a grid's code -> type of its tensors
BITS = {"FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT4": 4, "UINT2": 2}


@dataclass(frozen=True)
class Part:
    """One initializer. type is the name of an onnx.TensorProto data type; across: logical rows are its columns."""

    name: str
    type: str
    shape: tuple[int, ...]
    across: bool = False

    @property
    def nbytes(self) -> int:
        return -(-math.prod(self.shape) * BITS[self.type] // 8)

    @property
    def lanes(self) -> int:
        """How many logical rows share a byte, as many next to each other as it holds; 1 where `loose`."""
        return 1 if self.loose or not self.across else max(1, 8 // BITS[self.type])

    @property
    def loose(self) -> bool:
        """Whether a byte holds the end of one of its rows and the beginning of the next."""
        return bool(self.across and self.shape[-1] * BITS[self.type] % 8)


def refuses(grid: Grid) -> str | None:
    """Why ONNX cannot carry ``grid``, or None."""
    if grid.levels is not None:
        return "its scales are products of two levels, which ONNX would hold as floats, and not know apart again"
    if grid.bits not in TYPES:
        return f"codes of {grid.bits} bits; ONNX carries {', '.join(map(str, TYPES))}"
    low, high = (-128, 127) if grid.bits == 8 else (0, 2**grid.bits - 1)
    if grid.lo < low or grid.hi > high:
        return f"codes span [{grid.lo}, {grid.hi}], outside [{low}, {high}] of its {grid.bits}-bit type"
    if grid.block not in BLOCKS:
        return f"blocks of {grid.block}; ONNX Runtime fuses {', '.join(map(str, BLOCKS))}"
    return None


def stored_as(grid: Grid) -> StoredAs:
    """The type of the codes, and what a weight takes: codes, and a block's scale, zero point and offset."""
    bits = sum(math.prod(part.shape) * BITS[part.type] for part in parts("", (1, grid.block), grid))
    return StoredAs(TYPES[grid.bits], bits / grid.block)


def zero_point(grid: Grid) -> int:
    """The constant zero point of a grid without an integer zero of its own.

    With a float zero it is the middle of the codes: the integer term is then small on average, and
    the float term carries ``zero + zero_point * scale``.
    """
    return (grid.lo + grid.hi + 1) // 2 if grid.zero is Zero.OFFSET else grid.centre


def parts(name: str, shape: tuple[int, ...], grid: Grid | None, form: Form = "qdq") -> list[Part]:
    """The parts that store a tensor of logical ``shape``; grid is None for a float tensor."""
    if grid is None:
        return [Part(name, "FLOAT", shape)]
    out, inputs = shape
    blocks, across = inputs // grid.block, form == "qdq"
    each = (blocks, out) if across else (out, blocks)
    if across:
        codes = points = TYPES[grid.bits]
        held: tuple[int, ...] = (inputs, out)
        pointed = each
    else:
        codes = points = "UINT8"
        width = WIDTHS[grid.bits]
        held, pointed = (out, blocks, grid.block * width // 8), (out, -(-blocks * width // 8))
    stored = [
        Part(f"{name}.codes", codes, held, across),
        Part(f"{name}.scale", "FLOAT", each, across),
        Part(f"{name}.zero_point", points, pointed, across),
    ]
    return [*stored, Part(f"{name}.offset", "FLOAT", each, across)] if grid.zero is Zero.OFFSET else stored


def place(stored: list[Part]) -> tuple[dict[str, int], int]:
    """(part name -> offset in the data file, length of that file)."""
    offsets, end = {}, 0
    for part in sorted(stored, key=lambda p: p.name):
        offsets[part.name] = -(-end // ALIGNMENT) * ALIGNMENT
        end = offsets[part.name] + part.nbytes
    return offsets, end
