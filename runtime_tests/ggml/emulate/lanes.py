"""Types of one level (Q4_0, Q4_1, Q8_0): a block's integer sums, in lanes, times the product of two scales.

A lane holds some consecutive inputs of each block and has a float of its own, to which block after block is added; at
the end the lanes are added in a tree of halves. Eight lanes of four inputs are a register of AVX; one lane is a block
at a time.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from enum import Enum
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from runtime_tests.ggml.emulate.activations import BLOCK
from runtime_tests.loops import TILE, add, dot, fma, halve


class Offsets(Enum):
    """What becomes of a block's offset times the sum of its activations (Q4_1)."""

    NONE = "the type has none"
    APART = "a sum of its own, added at the end"
    ROUNDED = "the same, its products rounded before they are added"
    WITHIN = "added to the block's product, before that is added to the sum"


@cache
def kernel(lanes: int, fused: bool, offsets: Offsets = Offsets.NONE, left: bool = False) -> Callable[..., None]:
    """The loop over rows ``(x, dx, sx, w, dw, mw, y)``: int8 [m, in], float32 [m, blocks] twice, of
    `activations.Rounded`; int8 [in, TILE], float32 [blocks, TILE] twice, of `operands.Operand`; y float32 [m, TILE].

    fused: one rounding for product and sum. left: ``(sum * dw) * dx``, as C reads, in place of ``sum * (dw * dx)``.
    """
    width = BLOCK // lanes
    within, once = offsets is Offsets.WITHIN, fused and offsets is Offsets.APART
    apart = offsets in (Offsets.APART, Offsets.ROUNDED)

    @compiled
    def run(x, dx, sx, w, dw, mw, y):
        total, scale = np.empty(TILE, np.int32), np.empty(TILE, np.float32)
        held, offset = np.empty((lanes, TILE), np.float32), np.empty(TILE, np.float32)
        for i in range(len(x)):
            held[:], offset[:] = 0, 0
            for b in range(dx.shape[1]):
                d, s, own, least = dx[i, b], sx[i, b], dw[b], mw[b]
                for r in range(TILE):
                    scale[r] = d * own[r]
                for lane in range(lanes):
                    total[:] = 0
                    first = b * BLOCK + lane * width
                    dot(total, x[i], w, first, first + width, 1)
                    if left:
                        for r in range(TILE):
                            held[lane, r] += np.float32(total[r]) * own[r] * d
                    elif within:
                        for r in range(TILE):
                            held[lane, r] += scale[r] * np.float32(total[r]) + least[r] * s
                    else:
                        add(held[lane], total, scale, fused)
                if apart:
                    for r in range(TILE):
                        offset[r] = fma(least[r], s, offset[r]) if once else offset[r] + least[r] * s
            halve(held)
            for r in range(TILE):
                y[i, r] = held[0, r] + offset[r] if apart else held[0, r]

    return run
