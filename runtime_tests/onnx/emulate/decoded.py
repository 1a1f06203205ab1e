"""Kernels that multiply float32 by float32: the weights are decoded first, all products are float products.

Every loop is ``(x, w, y)``: activations float32 [m, in], weights [in, TILE], outputs [m, TILE].
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from runtime_tests.loops import TILE, fma
from runtime_tests.onnx.emulate.folds import Fold, fold

Loop = Callable[..., None]


@cache
def chain(panel: int, fused: bool) -> Loop:
    """Input after input onto one sum; every ``panel`` inputs a new sum begins, and is added to the output.

    fused: one rounding for product and sum.
    """

    @compiled
    def run(x, w, y):
        held, inputs = np.empty(TILE, np.float32), x.shape[1]
        for i in range(len(x)):
            for start in range(0, inputs, panel):
                held[:] = 0
                for k in range(start, min(start + panel, inputs)):
                    value, row = x[i, k], w[k]
                    for r in range(TILE):
                        held[r] = fma(value, row[r], held[r]) if fused else held[r] + value * row[r]
                for r in range(TILE):
                    y[i, r] = held[r] if start == 0 else y[i, r] + held[r]

    return run


@cache
def fours() -> Loop:
    """Four products, each rounded, are added up in order, and that is added to the output; then two, then one."""

    @compiled
    def run(x, w, y):
        inputs = x.shape[1]
        whole = inputs // 4 * 4
        for i in range(len(x)):
            y[i] = 0
            for k in range(0, whole, 4):
                a, b, c, d = x[i, k], x[i, k + 1], x[i, k + 2], x[i, k + 3]
                for r in range(TILE):
                    y[i, r] += ((a * w[k, r] + b * w[k + 1, r]) + c * w[k + 2, r]) + d * w[k + 3, r]
            k = whole
            if inputs - k >= 2:
                a, b = x[i, k], x[i, k + 1]
                for r in range(TILE):
                    y[i, r] += a * w[k, r] + b * w[k + 1, r]
                k += 2
            if inputs - k:
                a = x[i, k]
                for r in range(TILE):
                    y[i, r] += a * w[k, r]

    return run


@cache
def lanes(count: int, fused: bool, tree: Fold) -> Loop:
    """Every ``count``-th input in a lane, each lane a chain; at the end the lanes are added as ``tree`` says."""

    @compiled
    def run(x, w, y):
        held = np.empty((count, TILE), np.float32)
        for i in range(len(x)):
            held[:] = 0
            for start in range(0, x.shape[1], count):
                for lane in range(count):
                    value, row, sums = x[i, start + lane], w[start + lane], held[lane]
                    for r in range(TILE):
                        sums[r] = fma(value, row[r], sums[r]) if fused else sums[r] + value * row[r]
            fold(held, tree)
            y[i] = held[0]

    return run
