"""What the kernels' loops are made of. Each works on `TILE` outputs side by side, of which LLVM makes vectors.

Nothing here is reassociated or contracted behind our back (`edgeqaf.compiled`): products and sums of floats are
rounded where they are written, and where a kernel rounds once, `fma` stands.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, allow-untyped-calls

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from edgeqaf.compiled import compiled

TILE = 64


@intrinsic
def fma(typing_context, a, b, c):
    """``a * b + c`` in float32, rounded once: LLVM's own, an instruction where there is one, else libm's fmaf."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@compiled
def madd(a, b, c, fused):
    """``a * b + c`` in float32: rounded once if ``fused``, else twice."""
    return fma(a, b, c) if fused else a * b + c


@compiled
def dot(total, x, w, first, last, step):
    """Add integer products to int32 [TILE]: of x int8 [in] and w int8 [in, TILE], inputs ``first:last:step``."""
    for k in range(first, last, step):
        value, row = np.int32(x[k]), w[k]
        for r in range(TILE):
            total[r] += value * np.int32(row[r])


@compiled
def weigh(total, value, factor):
    """Add ``value * factor`` to int32 [TILE]; value int32 [TILE], factor int8 [TILE]."""
    for r in range(TILE):
        total[r] += value[r] * np.int32(factor[r])


@compiled
def add(held, total, scale, fused):
    """Add ``total * scale`` to float32 [TILE]: total int32, scale float32; rounded once if ``fused``, else twice."""
    for r in range(TILE):
        count = np.float32(total[r])
        held[r] = fma(count, scale[r], held[r]) if fused else held[r] + count * scale[r]


@compiled
def halve(held):
    """Add float32 [lanes, outputs], a power of two of lanes, in a tree: half onto half, down to ``held[0]``."""
    half = len(held) // 2
    while half:
        for lane in range(half):
            for r in range(held.shape[1]):
                held[lane, r] += held[lane + half, r]
        half //= 2
