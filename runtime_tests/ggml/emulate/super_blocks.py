"""Types of two levels (Q4_K, Q6_K) with one float to an output: the matrix kernels.

Repacked ones add so many inputs at once, and keep the minima in a second float that is taken off at the end; the
vector kernel, for rows that fill no group of four, adds a whole super-block at once. Tiled ones (ggml 0.26, eight rows
and more, matrices that are not repacked) put scale and minima together first and multiply by the activations' scale
last.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from runtime_tests.ggml.emulate.activations import SIXTEEN, SUPER
from runtime_tests.ggml.emulate.loops import TILE, add, dot, fma, weigh


@cache
def kernel(block: int, step: int, tiled: bool) -> Callable[..., None]:
    """The loop; its arguments and ``block`` are those of `super_lanes.avx`. step: inputs that are added at once."""
    minima = block == 2 * SIXTEEN

    @compiled
    def run(x, dx, sx, w, scales, mins, dw, mw, y):
        total, lowest, part = np.empty(TILE, np.int32), np.empty(TILE, np.int32), np.empty(TILE, np.int32)
        held, least = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        for i in range(len(x)):
            held[:], least[:] = 0, 0
            for at in range(0, x.shape[1], step):
                total[:], lowest[:] = 0, 0
                for first in range(at, at + step, block):
                    part[:] = 0
                    dot(part, x[i], w, first, first + block, 1)
                    weigh(total, part, scales[first // block])
                    if minima:
                        part[:] = sx[i, first // SIXTEEN] + sx[i, first // SIXTEEN + 1]
                        weigh(lowest, part, mins[first // block])
                d, own, low = dx[i, at // SUPER], dw[at // SUPER], mw[at // SUPER]
                if tiled:
                    for r in range(TILE):
                        found = own[r] * np.float32(total[r])
                        found = fma(-low[r], np.float32(lowest[r]), found) if minima else found
                        held[r] = fma(found, d, held[r])
                else:
                    add(held, total, own * d, True)
                    if minima:
                        add(least, lowest, low * d, True)
            y[i] = held - least

    return run
