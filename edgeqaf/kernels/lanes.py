"""What the kernels of `edgeqaf.kernels.searches` do, step by step, to many blocks side by side.

Blocks lie in the columns of arrays [.., WIDE], one to a lane. Inner loops go over lanes, and do in each what is written
for one block: LLVM makes full-width vector instructions of them, and sums keep the order of `block_sum`. Nothing
branches by a block: all tries are made, and `row` keeps the better.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

import numba
import numpy as np

from edgeqaf.kernels import scalars
from edgeqaf.kernels.scalars import INFINITE, step

WIDE, PARTS = 64, 8  # blocks side by side: few enough that theirs stay in the first cache; `block_sum`'s lanes
# Written out in a kernel before LLVM reads it: a sum's loops have the lengths of the grid when they are unrolled.
written = numba.njit(error_model="numpy", inline="always")

# Rows of scratch, a number to each lane: the scale and zero that reach the ends of the grid; those being tried; of them
# the inverse and the rounded; what codes and weights are counted from; sums; the least error, with its scale and zero.
END, START, SCALE, ZERO, INVERSE, WHOLE, MIDDLE, MEAN, TOTAL, TOP, LEAST, KEPT, KEPT_ZERO, ROWS = range(14)


@step
def _ends(g, w, row):
    """`rounding._end_of_grid` of each block: scale and zero, not rounded yet."""
    bits, low, high = w.view(np.int32), row[TOTAL].view(np.int32), row[TOP].view(np.int32)
    for n in range(WIDE):
        low[n] = high[n] = bits[0, n] if not (g.offset or g.stored) else scalars.turned(bits[0, n])
    for j in range(1, g.block):
        for n in range(WIDE):
            if not (g.offset or g.stored):  # the bits of sizes are in the sizes' order; the first of the largest
                larger = bits[j, n] & np.int32(0x7FFFFFFF) > high[n] & np.int32(0x7FFFFFFF)
                high[n] = bits[j, n] if larger else high[n]
            else:
                low[n], high[n] = min(low[n], scalars.turned(bits[j, n])), max(high[n], scalars.turned(bits[j, n]))
    for n in range(WIDE):
        if not (g.offset or g.stored):
            row[END, n] = (abs(row[TOP, n]) if g.signed else row[TOP, n]) / g.side
        else:
            low[n], high[n] = scalars.turned(low[n]), scalars.turned(high[n])
            row[END, n], row[START, n] = scalars.from_ends(g, row[TOTAL, n], row[TOP, n])


@step
def _of_scale(row):
    for n in range(WIDE):
        row[INVERSE, n], row[WHOLE, n] = scalars.inverse(row[SCALE, n]), np.rint(row[ZERO, n])


@written
def block_sum(g, term, w, steps, parts, row, total):
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


@step
def weight(g, w, steps, row, j, n):
    return w[j, n]


@step
def _squared_step(g, w, steps, row, j, n):
    return steps[j, n] * steps[j, n]


@step
def _product(g, w, steps, row, j, n):
    return steps[j, n] * ((w[j, n] - row[MEAN, n]) if g.offset else w[j, n])


@step
def squared_error(g, w, steps, row, j, n):
    code = scalars.code(g, w[j, n], row[INVERSE, n], row[ZERO, n], row[WHOLE, n])
    error = scalars.value(g, code, row[SCALE, n], row[ZERO, n]) - w[j, n]
    return error * error


@step
def _steps(g, w, steps, row):
    """`rounding._round` of each block, counted from what it is fitted from."""
    for n in range(WIDE):
        row[MIDDLE, n] = np.float32(0) if g.offset else row[WHOLE, n] if g.stored else g.centre
    for j in range(g.block):
        for n in range(WIDE):
            code = scalars.code(g, w[j, n], row[INVERSE, n], row[ZERO, n], row[WHOLE, n])
            steps[j, n] = code if g.offset else code - row[MIDDLE, n]
    if g.offset:
        for j in range(g.block):
            for n in range(WIDE):
                row[MIDDLE, n] += steps[j, n]  # integers: exact in any order
        for n in range(WIDE):
            row[MIDDLE, n] /= np.float32(g.block)
        for j in range(g.block):
            for n in range(WIDE):
                steps[j, n] -= row[MIDDLE, n]


@step
def _slope(g, row):
    for n in range(WIDE):
        before, slope = row[SCALE, n], row[TOP, n] / row[TOTAL, n]
        row[SCALE, n] = slope if row[TOTAL, n] > 0 else before
        if g.offset:
            row[ZERO, n] = row[MEAN, n] - row[SCALE, n] * row[MIDDLE, n]


@written
def _fit(g, w, steps, parts, row):
    """`rounding._least_squares` of each block for the codes that the scale gives."""
    _of_scale(row)
    _steps(g, w, steps, row)
    block_sum(g, _squared_step, w, steps, parts, row, TOTAL)
    block_sum(g, _product, w, steps, parts, row, TOP)
    _slope(g, row)


@step
def _from_end(g, fan, i, row):
    """The i-th of `rounding._starts`, the end of the grid first."""
    for n in range(WIDE):
        row[SCALE, n], row[ZERO, n] = row[END, n], row[START, n]
    if i:
        factor, second = fan[(i - 1) // g.starts], (i - 1) % g.starts
        for n in range(WIDE):
            row[SCALE, n], row[ZERO, n] = scalars.start(g, factor, second, row[END, n], row[START, n])


@step
def _stored(g, row):
    """The scale and zero that are kept of those found. Returns whether one cannot be stored."""
    wrong = np.int8(0)
    for n in range(WIDE):
        z = row[ZERO, n]
        row[SCALE, n] = scalars.half(row[SCALE, n])
        row[ZERO, n] = scalars.half(z) if g.offset else min(max(np.rint(z), g.lo), g.hi) if g.stored else np.float32(0)
        wrong |= np.int8(0) if abs(row[SCALE, n]) < INFINITE and abs(row[ZERO, n]) < INFINITE else np.int8(1)
    _of_scale(row)
    return wrong


@written
def candidate(g, fan, i, w, steps, parts, row):
    """`rounding._candidates`: the i-th of each block. Returns whether one cannot be stored."""
    _from_end(g, fan, i, row)
    if i:
        for _ in range(g.again):
            _fit(g, w, steps, parts, row)
    return _stored(g, row)


@written
def choose(i, row):
    """Keeps a candidate whose error, the row TOTAL, is less than of those before it; and the first."""
    for n in range(WIDE):
        better = row[TOTAL, n] < row[LEAST, n] or i == 0
        for kept, tried in ((LEAST, TOTAL), (KEPT, SCALE), (KEPT_ZERO, ZERO)):
            row[kept, n] = row[tried, n] if better else row[kept, n]


@step
def _load(g, blocks, at, last, w):
    for n in range(WIDE):
        block = blocks[min(at + n, last - 1)]
        for j in range(g.block):
            w[j, n] = block[j]


@written
def begin(g, blocks, at, last, w, steps, parts, row):
    """Blocks from ``at``, and what all candidates share; lanes beyond the last block repeat it."""
    _load(g, blocks, at, last, w)
    _ends(g, w, row)
    if g.offset and g.tries > 1:
        block_sum(g, weight, w, steps, parts, row, MEAN)
        for n in range(WIDE):
            row[MEAN, n] /= np.float32(g.block)
