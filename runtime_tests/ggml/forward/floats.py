"""Products of floats: the dot products of attention, and those with matrices that are stored as floats.

An output is a sum of products, held in several floats: product ``i`` goes to float ``i % step``, and at the end the
floats are added in a tree. A register has `lanes` of them, and a kernel several registers. Registers are added half
onto half. So are the lanes of a register, down to four; those four as halves (0 + 2) + (1 + 3), or as neighbours
(0 + 1) + (2 + 3) where the kernel has ``haddps``.

What is left over beyond a multiple of ``step`` is added to the finished sum one by one: in float32, or in float64 where
the sources say so (16-bit floats). GCC makes vectors of that loop, of a register or of half of one, and rounds those
products before it adds them; only what fills no half becomes FMAs where there are such.

Plain C has no lanes: products are rounded to float32 and added in float64.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from runtime_tests.loops import fma, halve


@dataclass(frozen=True)
class Sum:
    """An order of sums.

    lanes, registers: of a kernel; no lanes for plain C.
    fused:      one rounding for product and sum.
    neighbours: how the last four are added.
    wide:       whether what is left over is added in float64.
    masked:     whether it fills its floats like the rest, and nothing is left over.
    """

    lanes: int = 0
    registers: int = 1
    fused: bool = False
    neighbours: bool = False
    wide: bool = False
    masked: bool = False

    def fills(self, products: int) -> bool:
        """Whether so many fill whole registers."""
        return self.masked or products % (self.lanes or 1) == 0

    def product(self, x: Floats, w: NDArray[np.float32]) -> Floats:
        """x float32 [m, n] by w float32 [n, out], contiguous: float32 [m, out]."""
        y = np.empty((len(x), w.shape[1]), np.float32)
        kernel(self)(x, w, y)
        return y


PLAIN = Sum()


@cache
def kernel(order: Sum) -> Callable[..., None]:
    """The loop over rows ``(x, w, y)`` of `Sum.product`."""
    return _plain() if not order.lanes else _lanes(order)


@cache
def _plain() -> Callable[..., None]:
    @compiled
    def run(x, w, y):
        held = np.empty(w.shape[1], np.float64)
        for i in range(len(x)):
            held[:] = 0
            for k in range(len(w)):
                value, row = x[i, k], w[k]
                for r in range(len(held)):
                    held[r] += np.float64(value * row[r])
            for r in range(len(held)):
                y[i, r] = np.float32(held[r])

    return run


@cache
def _lanes(order: Sum) -> Callable[..., None]:
    step, fused, wide, masked = order.lanes * order.registers, order.fused, order.wide, order.masked
    place, half = _places(order), max(1, order.lanes // 2)

    @compiled
    def run(x, w, y):
        n = len(w)
        whole, out = n if masked else n - n % step, w.shape[1]
        vectors = n - n % half
        held = np.empty((step, out), np.float32)
        rest = np.empty(out, np.float64)
        for i in range(len(x)):
            held[:] = 0
            for k in range(whole):
                value, row, sums = x[i, k], w[k], held[place[k % step]]
                for r in range(out):
                    sums[r] = fma(value, row[r], sums[r]) if fused else sums[r] + value * row[r]
            halve(held)
            if wide:
                for r in range(out):
                    rest[r] = held[0, r]
                for k in range(whole, n):
                    for r in range(out):
                        rest[r] += np.float64(x[i, k] * w[k, r])
                for r in range(out):
                    held[0, r] = np.float32(rest[r])
            else:
                for k in range(whole, n):
                    single = fused and k >= vectors
                    for r in range(out):
                        held[0, r] = fma(x[i, k], w[k, r], held[0, r]) if single else held[0, r] + x[i, k] * w[k, r]
            y[i] = held[0]

    return run


def _places(order: Sum) -> NDArray[np.int64]:
    """Where each float stands so that a tree of halves adds it when the kernel does."""
    places = np.arange(order.lanes * order.registers)
    return places // 4 * 4 + np.array([0, 2, 1, 3])[places % 4] if order.neighbours else places
