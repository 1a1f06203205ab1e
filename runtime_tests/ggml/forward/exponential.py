"""exp, as llama.cpp's kernels have it, and what is made of it: SiLU, and the sums of softmax.

Vectors of floats go through a polynomial of their own (ARM's optimized routines): x = n ln 2 + b with n an integer and
``|b| <= ln 2 / 2``; exp(b) - 1 is a polynomial j of degree five, and the result is ``2^n (1 + j)``. Beyond 2^126 either
way that is put together of two powers, and beyond 2^192 it is 0 or infinity. AVX-512 has 1 inside its polynomial and
multiplies by ``2^n`` with one rounding (``vscalefps``). Where the processor has no FMA each product is rounded.

A vector gives each of its floats what it would give it alone, so only sums show how wide it is: softmax adds the
floats of a vector in float32, in a tree of halves (SSE2 without AVX: neighbours), and these sums in float64.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from typing import NamedTuple

import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from runtime_tests.ggml.forward.libm import expf
from runtime_tests.loops import madd

MAGIC = np.float32(float.fromhex("0x1.8p23"))  # added to a float of ordinary size it leaves an integer's bits
LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
LN2_HIGH, LN2_LOW = (np.float32(float.fromhex(x)) for x in ("0x1.62e4p-1", "0x1.7f7d1cp-20"))
C1, C2, C3, C4, C5 = (
    np.float32(float.fromhex(x))
    for x in ("0x1.ffffecp-1", "0x1.fffdb6p-2", "0x1.555e66p-3", "0x1.573e2ep-5", "0x1.0e4020p-7")
)
ONE, ZERO, INFINITY = np.float32(1), np.float32(0), np.float32(np.inf)
MOST, FAR = np.float32(126), np.float32(192)  # powers of two: of one float, of two


class Exponential(NamedTuple):
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


def swiglu(form: Exponential, gate: Floats, up: Floats) -> Floats:
    """``silu(gate) * up``, float32 [m, n] each; what fills no vector at a row's end has the C library's exp."""
    y = np.empty(gate.shape, np.float32)
    _swiglu(gate, up, form, y)
    return y


@compiled
def exp(x, form):
    """Of one float32."""
    fused = form.fused
    z = madd(x, LOG2_E, MAGIC, fused)
    n = z - MAGIC
    b = madd(-n, LN2_LOW, madd(-n, LN2_HIGH, x, fused), fused)
    u = b * b
    polynomial = madd(madd(C5, b, C4, fused), u, madd(C3, b, C2, fused), fused)
    if abs(n) > FAR:
        return INFINITY if n > 0 else ZERO
    if form.scaled:
        power = np.float64(2.0) ** np.float64(n)
        return np.float32(np.float64(madd(polynomial, u, madd(C1, b, ONE, fused), fused)) * power)
    j = madd(polynomial, u, C1 * b, fused)
    bits = np.float32(z).view(np.int32) << np.int32(23)
    if abs(n) <= MOST:
        k = np.int32(bits + np.int32(0x3F800000)).view(np.float32)
        return madd(j, k, k, fused)
    lower = n <= 0
    first = np.int32(0x01000000 if lower else 0x7F000000).view(np.float32)
    second = np.int32(bits + (0x7E000000 if lower else 0)).view(np.float32)
    return madd(second, j, second, fused) * first


@compiled
def grow(x, most, form):
    """float32 [n] becomes ``exp(x - most)`` in place; its sum, float64. n is a multiple of the lanes."""
    total, part, last = np.float64(0), np.empty(form.lanes, np.float32), 2 if form.neighbours else 0
    for start in range(0, len(x), form.lanes):
        for lane in range(form.lanes):
            x[start + lane] = exp(x[start + lane] - most, form)
            part[lane] = x[start + lane]
        half = form.lanes // 2
        while half > last:
            for lane in range(half):
                part[lane] += part[lane + half]
            half //= 2
        total += np.float64((part[0] + part[1]) + (part[2] + part[3]) if form.neighbours else part[0])
    return total


@compiled
def _swiglu(gate, up, form, y):
    for i in range(len(y)):
        whole = y.shape[1] - y.shape[1] % form.lanes
        for k in range(y.shape[1]):
            grown = exp(ZERO - gate[i, k], form) if k < whole else expf(-gate[i, k])
            y[i, k] = gate[i, k] / (ONE + grown) * up[i, k]
