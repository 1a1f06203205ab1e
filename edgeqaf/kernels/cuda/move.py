"""`edgeqaf.adapters.codes.move` on a GPU: the whole update of a weight in registers, codes and remainders in place.

Given the same factors, bit-equal to the reference: products and a sum in float32, each rounded by itself, then
integers alone. Reads the gradient once, in the type it comes in; the noise of a tile's rows overlaps, so that most
of it is in the cache.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import triton
import triton.language as tl
from torch import Tensor

from edgeqaf import noise
from edgeqaf.adapters.codes import Codes
from edgeqaf.kernels.cuda import EXACT
from edgeqaf.kernels.cuda.lanes import columns, packed, readable, tile, unpacked
from edgeqaf.packed import lanes
from edgeqaf.residual import PARTS

ROWS, BLOCKS = 16, 8  # of a program; the rows divide a band of `noise`


@triton.jit
def _mix(x, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """`noise.mix`: 32 bits held in uint64, where their products have room."""
    x = ((x ^ (x >> 16)) * FIRST) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * SECOND) & 0xFFFFFFFF
    return x ^ (x >> 16)


@triton.jit
def _floor(x):
    """int32; in integers, as the GPU's own floor takes a subnormal number for zero."""
    whole = x.to(tl.int32)
    return whole - (whole.to(tl.float32) > x).to(tl.int32)


@triton.jit(do_not_specialize=["key"])
def _move(codes, remainder, grad, scale, by_row, by_column, table, limit, key, places, out, blocks,
          BAND: tl.constexpr, BAND_STEP: tl.constexpr, STRIDE: tl.constexpr, FIRST: tl.constexpr,
          SECOND: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SHIFT: tl.constexpr, LANES: tl.constexpr,
          BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    HALF: tl.constexpr = 1 << (SHIFT - 1)
    row, block, inside = tile(out, blocks, ROWS, BLOCKS)
    inner, byte = columns(LANES, BLOCK)
    column, at = block * BLOCK + inner, codes + (row * blocks + block) * (BLOCK // LANES) + byte
    place = row * blocks * BLOCK + column
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    g = g * tl.load(scale + row * blocks + block, mask=inside, other=0.0)
    moves = g * tl.load(by_row + row, mask=row < out, other=0.0)
    moves = moves * tl.load(by_column + column, mask=block < blocks, other=0.0)
    moves = tl.where(moves < -limit, -limit, tl.where(moves > limit, limit, moves))
    band = (tl.program_id(1) * ROWS // BAND).to(tl.uint64)
    start = _mix((key.to(tl.uint32, bitcast=True).to(tl.uint64) + band * BAND_STEP) & 0xFFFFFFFF, FIRST, SECOND)
    noise = table + start.to(tl.uint32) % places.to(tl.uint32) + row % BAND * STRIDE
    moves = moves + tl.load(noise + column, mask=inside, other=0.0)
    whole = _floor(tl.where(moves == moves, moves, 0.0))  # not a number moves nothing
    left = tl.load(remainder + place, mask=inside, other=0).to(tl.int32)
    value = (unpacked(tl.load(at, mask=inside, other=0), LANES) << SHIFT) + left - whole
    value = tl.minimum(tl.maximum(value, (LOW << SHIFT) - HALF), (HIGH << SHIFT) + HALF - 1)
    code = (value + HALF) >> SHIFT
    tl.store(remainder + place, (value - (code << SHIFT)).to(tl.int8), mask=inside)
    tl.store(at, packed(code, LANES).to(codes.dtype.element_ty), mask=inside)


def move(grad: Tensor, scale: Tensor, row: Tensor, column: Tensor, limit: float, part: Codes) -> None:
    """c <- clip(c - SR(clip(grad scale row column, -limit, limit)) / 128), in place in ``part``.

    grad: [out, in], float32, bfloat16 or float16; scale: float32 [out, in / block]; row, column: float32 [out], [in].
    """
    (out, inputs), blocks, grid = grad.shape, scale.shape[1], part.grid
    first, second = noise.FACTORS
    _move[(triton.cdiv(blocks, BLOCKS), triton.cdiv(out, ROWS))](
        readable(part.codes, grid), part.remainder, grad.contiguous(), scale.contiguous(), row, column,
        noise.table(str(grad.device)), limit, _signed(noise.key(part.seed, int(part.updates))),
        noise.places(inputs), out, blocks, BAND=noise.ROWS, BAND_STEP=noise.BAND, STRIDE=noise.STRIDE, FIRST=first,
        SECOND=second, LOW=grid.lo, HIGH=grid.hi, SHIFT=int(math.log2(PARTS)), LANES=lanes(grid), BLOCK=grid.block,
        ROWS=ROWS, BLOCKS=BLOCKS, **EXACT,
    )  # fmt: skip


def _signed(word: int) -> int:
    """32 bits as an int32, the type that a kernel's argument then always has."""
    return word - 2**32 if word >= 2**31 else word
