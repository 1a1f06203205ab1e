"""`edgeqaf.adapters.lowrank.fold_product` on a GPU: product, rounding, fold and packing of a tile, in registers.

`edgeqaf.exact` snaps the factors so that a float64 sum of their products is exact. Counted in units of 2^-16 and
2^-18 the same numbers are integers, A within +-2^21, B within +-2^24. Written in digits of base 256 from -128 to
127, three of A and four of B, their product is twelve products of int8 matrices with sums in int32:

    B A = sum over s of 256^s  sum over p + q = s of B_q A_p,      |B_q A_p| <= 64 2^14 = 2^20

which matrix units take at their highest rate, and which no order of summing changes. int64 holds the whole
(2^51) and float64 holds it too, so the conversion is exact. float64 products would be slow on most GPUs.

What follows is the reference's: times the factor, plus the start and one half (a multiple of 1/128, exact), each
rounded once in float64, and floor. The power of two that turns units into numbers goes to the factor, where it
commutes with the rounding. Steps beyond +-512 end at the end of the grid whatever the code, as the reference's do.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgeqaf.exact import A_STEP, B_STEP, snap_a, snap_b
from edgeqaf.kernels.cuda import EXACT
from edgeqaf.kernels.cuda.lanes import columns, packed, readable, tile, unpacked
from edgeqaf.packed import Packed, lanes
from edgeqaf.residual import PARTS

A_DIGITS, B_DIGITS = 3, 4
ROWS, BLOCKS, LEAST = 32, 4, 32  # of a program; the least rank that matrix units take, others are filled up with zeros


@triton.jit
def _fold_product(codes, folded, b, a, factor, start, out, blocks, STARTS: tl.constexpr, PART: tl.constexpr,
                  LOW: tl.constexpr, HIGH: tl.constexpr, A_DIGITS: tl.constexpr, B_DIGITS: tl.constexpr,
                  RANK: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                  BLOCKS: tl.constexpr):  # fmt: skip
    r = (tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    c = (tl.program_id(0).to(tl.int64) * BLOCKS * BLOCK + tl.arange(0, BLOCKS * BLOCK))[:, None]
    k, inputs = tl.arange(0, RANK)[None, :], blocks * BLOCK
    total = tl.zeros([ROWS, BLOCKS * BLOCK], tl.int64)
    for s in tl.static_range(A_DIGITS + B_DIGITS - 2, -1, -1):
        part = tl.zeros([ROWS, BLOCKS * BLOCK], tl.int32)
        for p in tl.static_range(A_DIGITS):
            if s - p >= 0 and s - p < B_DIGITS:
                left = tl.load(b + ((s - p) * out + r) * RANK + k, mask=r < out, other=0)
                right = tl.load(a + (p * inputs + c) * RANK + k, mask=c < inputs, other=0)
                part = tl.dot(left, tl.trans(right), acc=part, out_dtype=tl.int32)
        total = total * 256 + part.to(tl.int64)
    total = tl.reshape(total, [ROWS, BLOCKS, LANES, BLOCK // LANES])
    row, block, inside = tile(out, blocks, ROWS, BLOCKS)
    inner, byte = columns(LANES, BLOCK)
    column, at = block * BLOCK + inner, (row * blocks + block) * (BLOCK // LANES) + byte
    half = tl.full([1, 1, 1, 1], 0.5, tl.float64)
    if STARTS:
        half += tl.load(start + row * blocks * BLOCK + column, mask=inside, other=0).to(tl.float64) * PART
    steps = total.to(tl.float64) * tl.load(factor + row * blocks + block, mask=inside, other=0.0) + half
    steps = tl.minimum(tl.maximum(tl.floor(steps), -512.0), 512.0).to(tl.int32)
    code = unpacked(tl.load(codes + at, mask=inside, other=0), LANES) + steps
    code = tl.minimum(tl.maximum(code, LOW), HIGH)
    tl.store(folded + at, packed(code, LANES).to(folded.dtype.element_ty), mask=inside)


def fold_product(base: Packed, b: Tensor, a: Tensor, factor: Tensor, start: Tensor | None) -> Tensor:
    """Packed codes uint8 [out, in / lanes]: ``base``'s plus `rounded_product` of the same, within the grid.

    b, a: float32 [out, r], [r, in]; factor: float64 [out, in / block]; start: int8 [out, in], in 1/128, or None.
    """
    grid, (out, inputs) = base.grid, base.shape
    blocks, codes = inputs // grid.block, base.codes.contiguous()
    folded = torch.empty_like(codes)
    rank = triton.next_power_of_2(max(len(a), LEAST))
    factors = digits(snap_b(b) / B_STEP, B_DIGITS, rank), digits(snap_a(a).T / A_STEP, A_DIGITS, rank)
    _fold_product[(triton.cdiv(blocks, BLOCKS), triton.cdiv(out, ROWS))](
        readable(codes, grid), readable(folded, grid), *factors, (factor * (A_STEP * B_STEP)).contiguous(),
        codes if start is None else start.contiguous(), out, blocks, STARTS=start is not None, PART=1 / PARTS,
        LOW=grid.lo, HIGH=grid.hi, A_DIGITS=A_DIGITS, B_DIGITS=B_DIGITS, RANK=rank, LANES=lanes(grid),
        BLOCK=grid.block, ROWS=ROWS, BLOCKS=BLOCKS, **EXACT,
    )  # fmt: skip
    return folded


def digits(x: Tensor, count: int, rank: int) -> Tensor:
    """int8 [count, n, rank]: integers [n, r] in base 256, the lowest digit first, filled up with columns of zeros."""
    rest = torch.nn.functional.pad(x, (0, rank - x.shape[1])).int()
    found = []
    for _ in range(count):
        found.append(((rest + 128) & 255) - 128)
        rest = (rest - found[-1]) >> 8
    return torch.stack(found).to(torch.int8)
