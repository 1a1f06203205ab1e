"""The search of `edgeqaf.rounding` on many blocks side by side: what `edgeqaf.kernels.rounding` runs.

Blocks lie in the columns of arrays [.., WIDE], one to a lane. Inner loops go over lanes, and do in each what is written
for one block: LLVM makes full-width vector instructions of them, and sums keep the order of `block_sum`. Where a block
could leave early, a lane goes on and its result is not taken. Steps and kernels share a file because numba's cache of
a kernel goes by the kernel's file.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.grid import Grid
from edgeqaf.kernels.constants import plan
from edgeqaf.rounding import factors

WIDE = 64  # blocks side by side: a few vectors in each row, and 32 rows are a quarter of the first cache
PARTS, INFINITE, MOST = 8, np.float32(np.inf), np.float32(np.finfo(np.float32).max)
# What is done to a number; and to rows of them: written out in a kernel before LLVM reads it, so that loops have the
# lengths of the kernel's grid when they are unrolled and made vectors.
scalar = numba.njit(error_model="numpy", forceinline=True)
step = numba.njit(error_model="numpy", inline="always")


# Rows of scratch, a number to each lane.
# The scale and zero that reach the ends of the grid; those being tried; of them the inverse and the rounded; what codes
# and weights are counted from; sums; and the least error with its scale and zero.
END, START, SCALE, ZERO, INVERSE, WHOLE, MIDDLE, MEAN, TOTAL, TOP, LEAST, KEPT, KEPT_ZERO, ROWS = range(14)


@scalar
def _half(x):
    """`to_half`: ties to even; infinite beyond float16."""
    size = abs(x)
    # Subnormal there: a multiple of 2^-24, the last place of a float32 near 1/2. Else 11 bits: Veltkamp's splitting.
    small, bound = (size + np.float32(0.5)) - np.float32(0.5), size * np.float32(8193)
    rounded = small if size < np.float32(2.0**-14) else bound - (bound - size)
    return np.copysign(rounded, x) if size < np.float32(65520) else INFINITE


@scalar
def _finite(x):
    """`numpy.nan_to_num`."""
    return np.float32(0) if x != x else min(max(x, -MOST), MOST)


@scalar
def _inverse(scale):
    inverse = np.float32(1) / scale
    return inverse if abs(inverse) < INFINITE else np.float32(0)


@scalar
def _code(g, w, inverse, zero, whole):
    """`rounding._round` of one weight, as float32; inverse: of the scale; whole: the zero, rounded."""
    x = (w - zero) * inverse if g.offset else w * inverse
    if g.signed:
        x = np.copysign(np.floor(abs(x) + np.float32(0.5)), x)
    else:
        x = np.floor(x + g.half)
        if g.stored:
            x += whole
    return min(max(x, g.lo), g.hi)


@scalar
def _value(g, code, scale, zero):
    """`decode` of one code."""
    return code * scale + zero if g.offset else (code - (zero if g.stored else g.centre)) * scale


@scalar
def _turned(bits):
    """The bits of a float32 as an integer in the numbers' order, and back: the rest of a negative number's turned."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@scalar
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


@scalar
def _from_ends(g, low, high):
    low, high = low + np.float32(0), high + np.float32(0)
    if g.offset:
        return (high - low) / (g.hi - g.lo), low
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = (high - low) / (g.hi - g.lo)
    return scale, _finite(g.lo - low / scale)


@step
def _ends(g, w, row):
    """`rounding._end_of_grid` of each block: scale and zero, not rounded yet."""
    bits, low, high = w.view(np.int32), row[TOTAL].view(np.int32), row[TOP].view(np.int32)
    for n in range(WIDE):
        low[n] = high[n] = bits[0, n] if not (g.offset or g.stored) else _turned(bits[0, n])
    for j in range(1, g.block):
        for n in range(WIDE):
            if not (g.offset or g.stored):  # the bits of sizes are in the sizes' order; the first of the largest
                larger = bits[j, n] & np.int32(0x7FFFFFFF) > high[n] & np.int32(0x7FFFFFFF)
                high[n] = bits[j, n] if larger else high[n]
            else:
                low[n], high[n] = min(low[n], _turned(bits[j, n])), max(high[n], _turned(bits[j, n]))
    for n in range(WIDE):
        if not (g.offset or g.stored):
            row[END, n] = (abs(row[TOP, n]) if g.signed else row[TOP, n]) / g.side
        else:
            low[n], high[n] = _turned(low[n]), _turned(high[n])
            row[END, n], row[START, n] = _from_ends(g, row[TOTAL, n], row[TOP, n])


@step
def _of_scale(row):
    for n in range(WIDE):
        row[INVERSE, n], row[WHOLE, n] = _inverse(row[SCALE, n]), np.rint(row[ZERO, n])


@step
def _block_sum(g, term, w, steps, parts, row, total):
    """`block_sum` of term(g, w, steps, row, j, lane) over j, into row ``total``."""
    for start in range(0, g.block, g.sums):
        for k in range(PARTS):
            for n in range(WIDE):
                part = term(g, w, steps, row, start + k, n)
                for i in range(1, g.sums // PARTS):
                    part += term(g, w, steps, row, start + i * PARTS + k, n)
                parts[k, n] = part
        for n in range(WIDE):
            left = (parts[0, n] + parts[1, n]) + (parts[2, n] + parts[3, n])
            found = left + ((parts[4, n] + parts[5, n]) + (parts[6, n] + parts[7, n]))
            row[total, n] = found if start == 0 else row[total, n] + found


@scalar
def _weight(g, w, steps, row, j, n):
    return w[j, n]


@scalar
def _squared_step(g, w, steps, row, j, n):
    return steps[j, n] * steps[j, n]


@scalar
def _product(g, w, steps, row, j, n):
    return steps[j, n] * ((w[j, n] - row[MEAN, n]) if g.offset else w[j, n])


@scalar
def _squared_error(g, w, steps, row, j, n):
    code = _code(g, w[j, n], row[INVERSE, n], row[ZERO, n], row[WHOLE, n])
    error = _value(g, code, row[SCALE, n], row[ZERO, n]) - w[j, n]
    return error * error


@step
def _fit(g, w, steps, parts, row):
    """`rounding._round` and `rounding._least_squares` of each block."""
    _of_scale(row)
    count = np.float32(g.block)
    for n in range(WIDE):
        row[MIDDLE, n] = np.float32(0) if g.offset else row[WHOLE, n] if g.stored else g.centre
    for j in range(g.block):
        for n in range(WIDE):
            code = _code(g, w[j, n], row[INVERSE, n], row[ZERO, n], row[WHOLE, n])
            if g.offset:
                steps[j, n] = code
                row[MIDDLE, n] += code  # integers: exact in any order
            else:
                steps[j, n] = code - row[MIDDLE, n]
    if g.offset:
        for n in range(WIDE):
            row[MIDDLE, n] /= count
        for j in range(g.block):
            for n in range(WIDE):
                steps[j, n] -= row[MIDDLE, n]
    _block_sum(g, _squared_step, w, steps, parts, row, TOTAL)
    _block_sum(g, _product, w, steps, parts, row, TOP)
    for n in range(WIDE):
        before, slope = row[SCALE, n], row[TOP, n] / row[TOTAL, n]
        row[SCALE, n] = slope if row[TOTAL, n] > 0 else before
        if g.offset:
            row[ZERO, n] = row[MEAN, n] - row[SCALE, n] * row[MIDDLE, n]


@step
def _candidate(g, fan, i, w, steps, parts, row):
    """`rounding._candidates`: the i-th of each block. Returns whether one cannot be stored."""
    for n in range(WIDE):
        row[SCALE, n], row[ZERO, n] = row[END, n], row[START, n]
    if i:
        factor, second = fan[(i - 1) // g.starts], (i - 1) % g.starts
        for n in range(WIDE):
            row[SCALE, n], row[ZERO, n] = _start(g, factor, second, row[END, n], row[START, n])
        for _ in range(g.again):
            _fit(g, w, steps, parts, row)
    wrong = np.int8(0)
    for n in range(WIDE):
        z = row[ZERO, n]
        row[SCALE, n] = _half(row[SCALE, n])
        row[ZERO, n] = _half(z) if g.offset else min(max(np.rint(z), g.lo), g.hi) if g.stored else np.float32(0)
        wrong |= np.int8(0) if abs(row[SCALE, n]) < INFINITE and abs(row[ZERO, n]) < INFINITE else np.int8(1)
    _of_scale(row)
    return wrong


@step
def _begin(g, blocks, at, last, w, steps, parts, row):
    """Blocks from ``at``, and what all candidates share; lanes beyond the last block repeat it."""
    for n in range(WIDE):
        block = blocks[min(at + n, last - 1)]
        for j in range(g.block):
            w[j, n] = block[j]
    _ends(g, w, row)
    if g.offset and g.tries > 1:
        _block_sum(g, _weight, w, steps, parts, row, MEAN)
        for n in range(WIDE):
            row[MEAN, n] /= np.float32(g.block)


@cache
def nearest(grid: Grid, search: bool) -> Callable[..., None]:
    """`rounding._quantize_rows` of blocks [.., block], those from first to last."""
    g, fan = plan(grid, search), np.array(factors(grid))

    @compiled
    def kernel(blocks, stored, scale, zero, failed, first, last):
        w, steps = np.empty((g.block, WIDE), np.float32), np.empty((g.block, WIDE), np.float32)
        parts, row = np.empty((PARTS, WIDE), np.float32), np.zeros((ROWS, WIDE), np.float32)
        for at in range(first, last, WIDE):
            _begin(g, blocks, at, last, w, steps, parts, row)
            for i in range(g.tries):
                failed[0] |= _candidate(g, fan, i, w, steps, parts, row)
                if g.tries > 1:
                    _block_sum(g, _squared_error, w, steps, parts, row, TOTAL)
                for n in range(WIDE):
                    better = row[TOTAL, n] < row[LEAST, n] or i == 0
                    for kept, tried in ((LEAST, TOTAL), (KEPT, SCALE), (KEPT_ZERO, ZERO)):
                        row[kept, n] = row[tried, n] if better else row[kept, n]
            if failed[0]:
                return
            for n in range(min(WIDE, last - at)):
                s, z = row[KEPT, n], row[KEPT_ZERO, n]
                block, to, inverse, whole = blocks[at + n], stored[at + n], _inverse(s), np.rint(z)
                scale[at + n], zero[at + n] = s, z
                for j in range(g.block):
                    to[j] = np.int8(_code(g, block[j], inverse, z, whole))

    return kernel


@cache
def in_order(grid: Grid) -> Callable[..., None]:
    """`edgeqaf.gptq.tried` of blocks [.., block], those from first to last."""
    g, fan = plan(grid, True), np.array(factors(grid))

    @compiled
    def kernel(blocks, shares, costs, stored, scale, zero, errors, failed, first, last):
        w, steps = np.empty((g.block, WIDE), np.float32), np.empty((g.block, WIDE), np.float32)
        left, lost = np.empty((g.block, WIDE), np.float32), np.empty((g.block, WIDE), np.float32)
        codes, kept = np.empty((g.block, WIDE), np.float32), np.empty((g.block, WIDE), np.float32)
        parts, row = np.empty((PARTS, WIDE), np.float32), np.zeros((ROWS, WIDE), np.float32)
        for at in range(first, last, WIDE):
            _begin(g, blocks, at, last, w, steps, parts, row)
            for i in range(g.tries):
                failed[0] |= _candidate(g, fan, i, w, steps, parts, row)
                for j in range(g.block):
                    for n in range(WIDE):
                        left[j, n] = w[j, n]
                for j in range(g.block):
                    for n in range(WIDE):
                        steps[j, n] = _code(g, left[j, n], row[INVERSE, n], row[ZERO, n], row[WHOLE, n])
                    for n in range(WIDE):
                        lost[j, n] = left[j, n] - _value(g, steps[j, n], row[SCALE, n], row[ZERO, n])
                    for k in range(j + 1, g.block):
                        share = shares[j, k]
                        for n in range(WIDE):
                            left[k, n] -= lost[j, n] * share
                    for n in range(WIDE):
                        left[j, n] = lost[j, n] * lost[j, n] * costs[j]
                _block_sum(g, _weight, left, steps, parts, row, TOTAL)
                for j in range(g.block):
                    for n in range(WIDE):
                        better = row[TOTAL, n] < row[LEAST, n] or i == 0
                        codes[j, n] = steps[j, n] if better else codes[j, n]
                    for n in range(WIDE):
                        better = row[TOTAL, n] < row[LEAST, n] or i == 0
                        kept[j, n] = lost[j, n] if better else kept[j, n]
                for n in range(WIDE):
                    better = row[TOTAL, n] < row[LEAST, n] or i == 0
                    for best, tried in ((LEAST, TOTAL), (KEPT, SCALE), (KEPT_ZERO, ZERO)):
                        row[best, n] = row[tried, n] if better else row[best, n]
            if failed[0]:
                return
            for n in range(min(WIDE, last - at)):
                scale[at + n], zero[at + n] = row[KEPT, n], row[KEPT_ZERO, n]
                for j in range(g.block):
                    stored[at + n, j], errors[at + n, j] = np.int8(codes[j, n]), kept[j, n]

    return kernel
