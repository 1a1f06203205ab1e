"""`edgeqaf.rounding.definition`, and a block of `edgeqaf.gptq`, compiled: a block is read once and stays in cache.

Bit for bit their numpy definitions: the operations are the same, in float32, each rounded by itself, and sums over a
block are in the order of `edgeqaf.rounding.block_sum`. Where a scale leaves float16 the kernels stop and say so; the
definition then refuses it in words.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from edgeqaf.grid import Grid, Zero
from edgeqaf.kernels.constants import plan
from edgeqaf.kernels.cpu import over_rows
from edgeqaf.kernels.lanes import WIDE, nearest
from edgeqaf.qtensor import QTensor
from edgeqaf.rounding import factors

LANES, INFINITE, MOST = 8, np.float32(np.inf), np.float32(np.finfo(np.float32).max)
# A step of the kernels below, part of the machine code of each: what it is told of the grid is a constant there.
step = numba.njit(error_model="numpy", forceinline=True)


@step
def _dot(g, a, b, acc):
    """`block_sum` of a * b; acc: float32 [8] to add up in."""
    total = np.float32(0)
    for start in range(0, g.block, g.sums):
        x, y = a[start : start + g.sums], b[start : start + g.sums]
        for k in range(LANES):
            acc[k] = x[k] * y[k]
        for i in range(1, g.sums // LANES):
            for k in range(LANES):
                acc[k] += x[i * LANES + k] * y[i * LANES + k]
        found = ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]))
        total = found if start == 0 else total + found
    return total


@step
def _half(x):
    """`to_half`: ties to even; infinite beyond float16."""
    size = abs(x)
    if not size < np.float32(65520):
        return INFINITE
    if size < np.float32(2.0**-14):  # subnormal there: a multiple of 2^-24, the last place of a float32 near 1/2
        rounded = (size + np.float32(0.5)) - np.float32(0.5)
    else:  # 11 bits are kept, by Veltkamp's splitting
        bound = size * np.float32(8193)
        rounded = bound - (bound - size)
    return np.copysign(rounded, x)


@step
def _finite(x):
    """`numpy.nan_to_num`."""
    return np.float32(0) if x != x else min(max(x, -MOST), MOST)


@step
def _inverse(scale):
    inverse = np.float32(1) / scale
    return inverse if abs(inverse) < INFINITE else np.float32(0)


@step
def _code(g, w, inverse, zero, whole):
    """`rounding._round` of one weight, as float32; inverse: of the scale; whole: the zero, rounded."""
    x = (w - zero) * inverse if g.offset else w * inverse
    if g.signed:
        x = np.copysign(np.floor(abs(x) + np.float32(0.5)), x)
    else:
        x = np.floor(x + g.centre + np.float32(0.5))
        if g.stored:
            x += whole
    return min(max(x, g.lo), g.hi)


@step
def _value(g, code, scale, zero):
    """`decode` of one code."""
    return code * scale + zero if g.offset else (code - (zero if g.stored else g.centre)) * scale


@step
def _codes(g, w, scale, zero, found):
    """`rounding._round` of a block."""
    inverse, whole = _inverse(scale), np.rint(zero)
    for j in range(g.block):
        found[j] = _code(g, w[j], inverse, zero, whole)


@step
def _ends(g, w):
    """`rounding._end_of_grid` of a block: scale and zero, not rounded yet."""
    if not (g.offset or g.stored):
        bits, size, at = w.view(np.uint32), np.uint32(0), 0
        for j in range(g.block):  # the bits of sizes are in the sizes' order, and integers make vectors
            size = max(size, bits[j] & np.uint32(0x7FFFFFFF))
        while bits[at] & np.uint32(0x7FFFFFFF) != size:
            at += 1
        return (abs(w[at]) if g.signed else w[at]) / g.side, np.float32(0)
    bits, one = w.view(np.int32), np.empty(2, np.int32)
    one[:] = bits[0] ^ ((bits[0] >> 31) & 0x7FFFFFFF)
    least, most = one[0], one[1]
    for j in range(g.block):  # with the rest of a negative number's bits turned, they are in the numbers' order
        turned = bits[j] ^ ((bits[j] >> np.int32(31)) & np.int32(0x7FFFFFFF))
        least, most = min(least, turned), max(most, turned)
    one[0], one[1] = least ^ ((least >> 31) & 0x7FFFFFFF), most ^ ((most >> 31) & 0x7FFFFFFF)
    low, high = one.view(np.float32)[0] + np.float32(0), one.view(np.float32)[1] + np.float32(0)
    if g.offset:
        return (high - low) / (g.hi - g.lo), low
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = (high - low) / (g.hi - g.lo)
    return scale, _finite(g.lo - low / scale)


@step
def _fit(g, w, codes, scale, zero, a, b, ones, acc):
    """`rounding._least_squares` of a block; a, b: float32 [block], for what is multiplied."""
    if g.offset:
        count = np.float32(g.block)
        mean_c, mean_w = _dot(g, codes, ones, acc) / count, _dot(g, w, ones, acc) / count
        for j in range(g.block):
            a[j], b[j] = codes[j] - mean_c, w[j] - mean_w
        bottom = _dot(g, a, a, acc)
        fitted = _dot(g, a, b, acc) / bottom if bottom > 0 else scale
        return fitted, mean_w - fitted * mean_c
    middle = np.rint(zero) if g.stored else g.centre
    for j in range(g.block):
        a[j] = codes[j] - middle
    bottom = _dot(g, a, a, acc)
    return (_dot(g, a, w, acc) / bottom if bottom > 0 else scale), zero


@step
def _start(g, factor, second, scale, zero):
    """One of `rounding._starts`; second: whether it is the other one."""
    fitted, half = scale * factor, (g.hi - g.lo) / np.float32(2)
    if g.offset:
        return fitted, zero + (scale - fitted) * half
    if not g.stored:
        return (-fitted if second else fitted), zero
    middle = g.lo + half
    exact = middle - _finite((middle - zero) * scale / fitted)
    return fitted, min(max(np.ceil(exact) if second else np.floor(exact), g.lo), g.hi)


@step
def _candidates(g, fan, w, scales, zeros, found, a, b, ones, acc):
    """`rounding._candidates` of a block, into ``scales`` and ``zeros``: whether all can be stored."""
    scale, zero = _ends(g, w)
    for i in range(g.tries):
        fitted, z = scale, zero
        if i:
            fitted, z = _start(g, fan[(i - 1) // g.starts], (i - 1) % g.starts, scale, zero)
            for _ in range(g.again):
                _codes(g, w, fitted, z, found)
                fitted, z = _fit(g, w, found, fitted, z, a, b, ones, acc)
        scales[i] = _half(fitted)
        zeros[i] = _half(z) if g.offset else min(max(np.rint(z), g.lo), g.hi) if g.stored else np.float32(0)
        if not (abs(scales[i]) < INFINITE and abs(zeros[i]) < INFINITE):
            return False
    return True


def quantize(weights: Floats, grid: Grid, *, search: bool) -> QTensor | None:
    """`edgeqaf.rounding.definition`; None where a scale leaves float16."""
    blocks, failed = np.ascontiguousarray(weights).reshape(-1, grid.block), np.zeros(1, np.int8)
    codes, scale = np.empty(blocks.shape, np.int8), np.empty(len(blocks), np.float32)
    zero = np.empty_like(scale)
    over_rows(nearest(grid, search), *blocks.shape, blocks, codes, scale, zero, failed, band=WIDE)
    if failed[0]:
        return None
    each = len(weights), -1
    kept = None if grid.zero is Zero.NONE else zero.reshape(each)
    return QTensor(grid, codes.reshape(each), scale.reshape(each), kept)


@cache
def _in_order(grid: Grid) -> Callable[..., None]:
    """`edgeqaf.gptq.tried`."""
    g, fan = plan(grid, True), np.array(factors(grid))

    @compiled
    def kernel(left, shares, costs, stored, scale, zero, errors, failed, first, last):
        found, a, b = np.empty(g.block, np.float32), np.empty(g.block, np.float32), np.empty(g.block, np.float32)
        ones, w, acc = np.ones(g.block, np.float32), np.empty(g.block, np.float32), np.empty(LANES, np.float32)
        scales, zeros = np.empty(g.tries, np.float32), np.empty(g.tries, np.float32)
        for r in range(first, last):
            least = np.float32(0)
            if not _candidates(g, fan, left[r], scales, zeros, found, a, b, ones, acc):
                failed[0] = 1
                return
            for i in range(g.tries):
                w[:] = left[r]
                s, z, inverse, whole = scales[i], zeros[i], _inverse(scales[i]), np.rint(zeros[i])
                for j in range(g.block):
                    found[j] = _code(g, w[j], inverse, z, whole)
                    b[j] = w[j] - _value(g, found[j], s, z)
                    share, error = shares[j], b[j]
                    for k in range(j + 1, g.block):
                        w[k] -= error * share[k]
                for j in range(g.block):
                    a[j] = b[j] * b[j]
                loss = _dot(g, a, costs, acc)
                if i == 0 or loss < least:
                    least, scale[r, 0], zero[r, 0] = loss, s, z
                    errors[r] = b
                    for j in range(g.block):
                        stored[r, j] = np.int8(found[j])

    return kernel


def in_order(block: Floats, grid: Grid, shares: Floats, costs: Floats) -> tuple[QTensor, Floats] | None:
    """`edgeqaf.gptq.tried`; None where a scale leaves float16."""
    left, failed = np.ascontiguousarray(block), np.zeros(1, np.int8)
    codes, errors, scale = np.empty(left.shape, np.int8), np.empty_like(left), np.empty((len(left), 1), np.float32)
    zero = np.empty_like(scale)
    parts = [left, np.ascontiguousarray(shares[:, : grid.block]), costs, codes, scale, zero, errors, failed]
    over_rows(_in_order(grid), *left.shape, *parts)
    return None if failed[0] else (QTensor(grid, codes, scale, None if grid.zero is Zero.NONE else zero), errors)
