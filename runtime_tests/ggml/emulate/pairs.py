"""Types of one level before AVX2, and on ARM: the groups of a block's products share lanes.

A block's 32 products are eight groups of four neighbours. AVX and NEON add group g and group g + 4 in one lane, SSE
keeps the two apart. Dot products take blocks in pairs, each block of a pair with lanes of its own; a last block without
a partner is multiplied and added to the finished sum, as plain C does it. NEON's matrix product takes block by block.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from runtime_tests.ggml.emulate.activations import BLOCK
from runtime_tests.loops import TILE, add, dot, fma, halve

GROUP = 4  # products in a lane


@cache
def kernel(
    lanes: int, fused: bool, left: bool, neighbours: bool = False, alternate: bool = True
) -> Callable[..., None]:
    """The loop; its arguments and options are those of `lanes.kernel`, ``left`` of a last block without a partner.

    lanes:      of both blocks together: 8, or with the groups apart 16.
    neighbours: the lanes are added in a tree of neighbours (SSE, NEON), else of halves (AVX).
    alternate:  the blocks of a pair have lanes of their own; else all blocks have the same ones, and none is alone.
    """
    each, bits = lanes // 2 if alternate else lanes, lanes.bit_length() - 1
    # The tree of halves adds neighbours where the lanes stand with their numbers' bits reversed.
    place = np.array([int(f"{lane:0{bits}b}"[::-1], 2) if neighbours else lane for lane in range(lanes)])

    @compiled
    def run(x, dx, sx, w, dw, mw, y):
        total, scale = np.empty(TILE, np.int32), np.empty(TILE, np.float32)
        held, blocks = np.empty((lanes, TILE), np.float32), dx.shape[1]
        for i in range(len(x)):
            held[:] = 0
            for b in range(blocks // 2 * 2 if alternate else blocks):
                for r in range(TILE):
                    scale[r] = dx[i, b] * dw[b, r]
                for lane in range(each):
                    total[:] = 0
                    for first in range(b * BLOCK + lane * GROUP, (b + 1) * BLOCK, each * GROUP):
                        dot(total, x[i], w, first, first + GROUP, 1)
                    add(held[place[b % 2 * each + lane if alternate else lane]], total, scale, fused)
            halve(held)
            if blocks % 2 and alternate:
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
