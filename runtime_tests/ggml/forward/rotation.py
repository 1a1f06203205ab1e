"""Rotary positions: a pair of floats (a, b) becomes (a cos - b sin, a sin + b cos).

The angle of a position's first pair is the position, and that of each further pair is the last one's times
``base^(-2 / n)``, rounded to float32 each time: far pairs have the errors of all before them. cos and sin are the C
library's. With FMA, GCC rounds the products with b, and those with a together with the sums.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from dataclasses import dataclass

import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from runtime_tests.ggml.forward.libm import cosf, powf, sinf
from runtime_tests.loops import madd


@dataclass(frozen=True)
class Rope:
    """What a model rotates by.

    base:    of the angles. size: floats of a head that are rotated.
    halves:  a pair is one float of each half of these (NEOX); else two neighbours.
    factors: float32 [size / 2] that divide the angles, if the file has them.
    scale:   multiplies all angles (linear scaling).
    """

    base: float
    size: int
    halves: bool
    factors: Floats | None = None
    scale: float = 1.0

    def rotate(self, x: Floats, first: int, fused: bool) -> Floats:
        """float32 [m, heads, head size], of positions ``first`` and on; fused: with FMA."""
        factors = np.ones(self.size // 2, np.float32) if self.factors is None else self.factors
        y = x.copy()
        between, apart = (1, self.size // 2) if self.halves else (2, 1)
        _rows(y, np.float32(self.base), np.float32(self.scale), factors, first, between, apart, fused)
        return y


@compiled
def _rows(y, base, scale, factors, first, between, apart, fused):
    pairs = len(factors)
    step = powf(base, np.float32(-2.0) / np.float32(2 * pairs))
    cos, sin = np.empty(pairs, np.float32), np.empty(pairs, np.float32)
    for i in range(len(y)):
        angle = np.float32(first + i)
        for k in range(pairs):
            scaled = scale * (angle / factors[k])
            cos[k], sin[k] = cosf(scaled), sinf(scaled)
            angle *= step
        for head in range(y.shape[1]):
            for k in range(pairs):
                a, b = y[i, head, k * between], y[i, head, k * between + apart]
                y[i, head, k * between] = madd(a, cos[k], -(b * sin[k]), fused)
                y[i, head, k * between + apart] = madd(a, sin[k], b * cos[k], fused)
