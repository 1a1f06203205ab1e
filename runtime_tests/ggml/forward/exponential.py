"""exp, as llama.cpp's kernels have it, and what is made of it: SiLU, and the sums of softmax.

Vectors of floats go through a polynomial of their own (ARM's optimized routines): x = n ln 2 + b with n an integer and
``|b| <= ln 2 / 2``; exp(b) - 1 is a polynomial j of degree five, and the result is ``2^n (1 + j)``. Beyond 2^126 either
way that is put together of two powers, and beyond 2^192 it is 0 or infinity. AVX-512 has 1 inside its polynomial and
multiplies by ``2^n`` with one rounding (``vscalefps``). Where the processor has no FMA each product is rounded.

A vector gives each of its floats what it would give it alone, so only sums show how wide it is: softmax adds the
floats of a vector in float32, in a tree of halves (SSE2 without AVX: neighbours), and these sums in float64.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from runtime_tests.loops import fma

MAGIC = np.float32(float.fromhex("0x1.8p23"))  # added to a float of ordinary size it leaves an integer's bits
LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
LN2_HIGH, LN2_LOW = (np.float32(float.fromhex(x)) for x in ("0x1.62e4p-1", "0x1.7f7d1cp-20"))
C1, C2, C3, C4, C5 = (
    np.float32(float.fromhex(x))
    for x in ("0x1.ffffecp-1", "0x1.fffdb6p-2", "0x1.555e66p-3", "0x1.573e2ep-5", "0x1.0e4020p-7")
)
ONE, ZERO, INFINITY = np.float32(1), np.float32(0), np.float32(np.inf)
MOST, FAR = np.float32(126), np.float32(192)  # powers of two: of one float, of two


@dataclass(frozen=True)
class Exponential:
    """An arithmetic of exp.

    lanes:      of its vectors.
    fused:      one rounding for product and sum.
    scaled:     1 is inside the polynomial, and the power of two multiplies with one rounding.
    neighbours: how softmax adds the last four lanes: as neighbours, else as halves.
    """

    lanes: int = 4
    fused: bool = False
    scaled: bool = False
    neighbours: bool = False

    def swiglu(self, gate: Floats, up: Floats) -> Floats:
        """``silu(gate) * up``, float32 [m, n] each; n is a multiple of `lanes`, as in all blocks of quantized types."""
        y = np.empty(gate.size, np.float32)
        _swiglu(self)(gate.reshape(-1), up.reshape(-1), y)
        return y.reshape(gate.shape)


@cache
def exp(form: Exponential) -> Callable[..., None]:
    """The loop ``(x, y)`` over float32 [n] each."""
    fused, scaled = form.fused, form.scaled

    @compiled
    def madd(a, b, c):
        return fma(a, b, c) if fused else a * b + c

    @compiled
    def one(x):
        z = madd(x, LOG2_E, MAGIC)
        n = z - MAGIC
        b = madd(-n, LN2_LOW, madd(-n, LN2_HIGH, x))
        u = b * b
        polynomial = madd(madd(C5, b, C4), u, madd(C3, b, C2))
        if abs(n) > FAR:
            return INFINITY if n > 0 else ZERO
        if scaled:
            power = np.float64(2.0) ** np.float64(n)
            return np.float32(np.float64(madd(polynomial, u, madd(C1, b, ONE))) * power)
        j = madd(polynomial, u, C1 * b)
        bits = np.float32(z).view(np.int32) << np.int32(23)
        if abs(n) <= MOST:
            k = np.int32(bits + np.int32(0x3F800000)).view(np.float32)
            return madd(j, k, k)
        lower = n <= 0
        first = np.int32(0x01000000 if lower else 0x7F000000).view(np.float32)
        shift = np.int32(-0x7E000000 if lower else 0)
        second = np.int32(bits - shift).view(np.float32)
        return madd(second, j, second) * first

    @compiled
    def run(x, y):
        for i in range(len(x)):
            y[i] = one(x[i])

    return run


@cache
def _swiglu(form: Exponential) -> Callable[..., None]:
    grow = exp(form)

    @compiled
    def run(gate, up, y):
        for i in range(len(y)):
            y[i] = ZERO - gate[i]
        grow(y, y)
        for i in range(len(y)):
            y[i] = gate[i] / (ONE + y[i]) * up[i]

    return run


@cache
def grown(form: Exponential) -> Callable[..., float]:
    """The loop ``(x, most) -> sum``: float32 [n] becomes ``exp(x - most)`` in place, its sum is float64.

    n is a multiple of the lanes.
    """
    grow, lanes, neighbours = exp(form), form.lanes, form.neighbours

    @compiled
    def run(x, most):
        total, part = np.float64(0), np.empty(lanes, np.float32)
        for i in range(len(x)):
            x[i] -= most
        grow(x, x)
        for start in range(0, len(x), lanes):
            for lane in range(lanes):
                part[lane] = x[start + lane]
            half = lanes // 2
            while half >= (4 if neighbours else 1):
                for lane in range(half):
                    part[lane] += part[lane + half]
                half //= 2
            total += np.float64((part[0] + part[1]) + (part[2] + part[3]) if neighbours else part[0])
        return total

    return run
