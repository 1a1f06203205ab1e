"""Types of two levels (Q4_K, Q6_K) in eight lanes, as the dot-product kernels have them.

In a lane are 32 of a super-block's 256 products, each times its block's integer scale: still integers. Their sum
times the product of two float scales is added to the lane's float, super-block after super-block. AVX puts four
neighbours into a lane, plain C every eighth product.

Q6_K's codes are stored with 32 added, and plain C takes it off each of them. AVX multiplies the stored ones and takes
``32 * scale * sum of the activations`` off the lanes' sums: that of blocks 2l and 2l + 1 off lane l, in whatever lanes
their products are. Exact in integers, but it moves weight from lane to lane, and each lane rounds for itself.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from runtime_tests.ggml.emulate.activations import SIXTEEN, SUPER
from runtime_tests.loops import TILE, add, dot, halve, weigh

LANES, GROUP = 8, 4


@cache
def avx(block: int, added: int, fused: bool) -> Callable[..., None]:
    """The loop over rows ``(x, dx, sx, w, scales, mins, dw, mw, y)``: int8 [m, in], float32 [m, supers], int32
    [m, in / 16], of `activations.Rounded`; int8 [in, TILE], int8 [in / block, TILE] twice, float32 [supers, TILE]
    twice, of `operands.Operand`; y float32 [m, TILE].

    block: inputs to an integer scale; those of 32 have minima. added: what stored codes have more than w.
    fused: one rounding for product and sum.
    """
    minima = block == 2 * SIXTEEN

    @compiled
    def run(x, dx, sx, w, scales, mins, dw, mw, y):
        total, part = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
        held, least = np.empty((LANES, TILE), np.float32), np.empty((LANES // 2, TILE), np.float32)
        for i in range(len(x)):
            held[:], least[:] = 0, 0
            for b in range(dx.shape[1]):
                scale = dx[i, b] * dw[b]
                for lane in range(LANES):
                    _neighbours(total, part, x[i], sx[i], w, scales, b, lane, block, added)
                    add(held[lane], total, scale, fused)
                if minima:
                    scale = -(dx[i, b] * mw[b])
                    for lane in range(LANES // 2):
                        total[:] = 0
                        for k in range(b * LANES + 2 * lane, b * LANES + 2 * lane + 2):
                            _minimum(total, part, sx[i], mins, k)
                        add(least[lane], total, scale, fused)
            halve(held)
            halve(least)
            y[i] = held[0] + least[0]

    return run


@cache
def plain(block: int) -> Callable[..., None]:
    """The loop; its arguments and ``block`` are those of `avx`."""
    minima = block == 2 * SIXTEEN

    @compiled
    def run(x, dx, sx, w, scales, mins, dw, mw, y):
        total, part = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
        held, found = np.empty((LANES, TILE), np.float32), np.empty(TILE, np.float32)
        for i in range(len(x)):
            held[:], found[:] = 0, 0
            for b in range(dx.shape[1]):
                for lane in range(LANES):
                    total[:] = 0
                    for start in range(b * SUPER, (b + 1) * SUPER, block):
                        part[:] = 0
                        dot(part, x[i], w, start + lane, start + block, LANES)
                        weigh(total, part, scales[start // block])
                    add(held[lane], total, dx[i, b] * dw[b], False)
                if minima:
                    total[:] = 0
                    for k in range(b * LANES, (b + 1) * LANES):
                        _minimum(total, part, sx[i], mins, k)
                    add(found, total, -(dx[i, b] * mw[b]), False)
            for lane in range(LANES):
                found += held[lane]
            y[i] = found

    return run


@compiled
def _neighbours(total, part, x, sums, w, scales, b, lane, block, added):
    """AVX's integers in one lane of super-block ``b``."""
    total[:] = 0
    for first in range(b * SUPER + lane * GROUP, (b + 1) * SUPER, LANES * GROUP):
        part[:] = 0
        dot(part, x, w, first, first + GROUP, 1)
        for k in range(first, first + GROUP):
            part += np.int32(x[k]) * np.int32(added)
        weigh(total, part, scales[first // block])
    if added:
        for k in range(b * SIXTEEN + 2 * lane, b * SIXTEEN + 2 * lane + 2):
            part[:] = -sums[k] * np.int32(added)
            weigh(total, part, scales[k])


@compiled
def _minimum(total, part, sums, mins, k):
    """Add a block of 32's minimum times the sum of its activations."""
    part[:] = sums[2 * k] + sums[2 * k + 1]
    weigh(total, part, mins[k])
