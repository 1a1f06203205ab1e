"""Types of two levels (Q4_K, Q6_K) with one float to an output: the matrix kernels, and ARM's.

So many inputs are added at once. Kernels differ in that number, and in what becomes of the minima (`Minima`). Tiled
ones (ggml 0.26 on x86: eight rows and more, matrices that are not repacked) put scale and minima together first and
multiply by the activations' scale last.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from enum import Enum
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from runtime_tests.ggml.emulate.activations import SIXTEEN, SUPER
from runtime_tests.loops import TILE, add, dot, fma, weigh


class Minima(Enum):
    """Where the minima of Q4_K go."""

    APART = "a float of their own, taken off at the end"
    BEFORE = "the same float, before the super-block's products"
    AFTER = "the same float, after them"


@cache
def kernel(block: int, step: int, minima: Minima = Minima.APART, fused: bool = True) -> Callable[..., None]:
    """The loop; its arguments, ``block`` and ``fused`` are those of `super_lanes.avx`. step: inputs added at once."""
    some = block == 2 * SIXTEEN
    apart, before, after = (some and minima is kind for kind in (Minima.APART, Minima.BEFORE, Minima.AFTER))

    @compiled
    def run(x, dx, sx, w, scales, mins, dw, mw, y):
        total, part = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
        held, least = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        for i in range(len(x)):
            held[:], least[:] = 0, 0
            for b in range(dx.shape[1]):
                scale, low, end = dx[i, b] * dw[b], dx[i, b] * mw[b], (b + 1) * SUPER
                if before:
                    _minima(total, part, sx[i], mins, b * SUPER, end)
                    add(held, total, -low, fused)
                for at in range(b * SUPER, end, step):
                    _products(total, part, x[i], w, scales, at, at + step, block)
                    add(held, total, scale, fused)
                    if apart:
                        _minima(total, part, sx[i], mins, at, at + step)
                        add(least, total, low, fused)
                if after:
                    _minima(total, part, sx[i], mins, b * SUPER, end)
                    add(held, total, -low, fused)
            y[i] = held - least

    return run


@cache
def tiled(block: int) -> Callable[..., None]:
    """The loop of tiled kernels; its arguments and ``block`` are those of `super_lanes.avx`."""
    some = block == 2 * SIXTEEN

    @compiled
    def run(x, dx, sx, w, scales, mins, dw, mw, y):
        total, lowest, part = np.empty(TILE, np.int32), np.zeros(TILE, np.int32), np.empty(TILE, np.int32)
        held = np.empty(TILE, np.float32)
        for i in range(len(x)):
            held[:] = 0
            for b in range(dx.shape[1]):
                _products(total, part, x[i], w, scales, b * SUPER, (b + 1) * SUPER, block)
                if some:
                    _minima(lowest, part, sx[i], mins, b * SUPER, (b + 1) * SUPER)
                for r in range(TILE):
                    found = dw[b, r] * np.float32(total[r])
                    found = fma(-mw[b, r], np.float32(lowest[r]), found) if some else found
                    held[r] = fma(found, dx[i, b], held[r])
            y[i] = held

    return run


@compiled
def _products(total, part, x, w, scales, first, last, block):
    """Blocks' products, each block times its integer scale, over inputs ``first:last``."""
    total[:] = 0
    for at in range(first, last, block):
        part[:] = 0
        dot(part, x, w, at, at + block, 1)
        weigh(total, part, scales[at // block])


@compiled
def _minima(total, part, sums, mins, first, last):
    """Minima times the sums of activations, over inputs ``first:last``."""
    total[:] = 0
    for k in range(first // SIXTEEN, last // SIXTEEN):
        part[:] = sums[k]
        weigh(total, part, mins[k // 2])
