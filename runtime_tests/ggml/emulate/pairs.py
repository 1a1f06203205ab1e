"""Types of one level before AVX2: blocks in pairs, each block of a pair with lanes of its own.

A block's 32 products are eight groups of four neighbours. AVX adds group g and group g + 4 in one lane, SSE keeps the
two apart, so it has sixteen lanes to AVX's eight. A last block without a partner is multiplied and added to the
finished sum, as plain C does it.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from runtime_tests.ggml.emulate.activations import BLOCK
from runtime_tests.ggml.emulate.loops import TILE, add, dot, fma, halve

GROUP = 4  # products in a lane


@cache
def kernel(lanes: int, fused: bool, left: bool) -> Callable[..., None]:
    """The loop; its arguments and options are those of `lanes.kernel`, ``left`` of a last block without a partner.

    lanes: 8, added in a tree of halves (AVX), or 16, added in a tree of neighbours (SSE).
    """
    each = lanes // 2
    # The tree of halves adds neighbours where the lanes stand with their numbers' bits reversed.
    at = [int(f"{lane:04b}"[::-1], 2) for lane in range(lanes)] if lanes == 16 else range(lanes)
    place = np.array(at)

    @compiled
    def run(x, dx, sx, w, dw, mw, y):
        total, scale = np.empty(TILE, np.int32), np.empty(TILE, np.float32)
        held, blocks = np.empty((lanes, TILE), np.float32), dx.shape[1]
        for i in range(len(x)):
            held[:] = 0
            for b in range(blocks // 2 * 2):
                for r in range(TILE):
                    scale[r] = dx[i, b] * dw[b, r]
                for lane in range(each):
                    total[:] = 0
                    for first in range(b * BLOCK + lane * GROUP, (b + 1) * BLOCK, each * GROUP):
                        dot(total, x[i], w, first, first + GROUP, 1)
                    add(held[place[b % 2 * each + lane]], total, scale, fused)
            halve(held)
            if blocks % 2:
                b = blocks - 1
                d, own = dx[i, b], dw[b]
                total[:] = 0
                dot(total, x[i], w, b * BLOCK, (b + 1) * BLOCK, 1)
                for r in range(TILE):
                    count = np.float32(total[r])
                    one, other = (count * own[r], d) if left else (count, own[r] * d)
                    held[0, r] = fma(one, other, held[0, r]) if fused else held[0, r] + one * other
            for r in range(TILE):
                y[i, r] = held[0, r]

    return run
