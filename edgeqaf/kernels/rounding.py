"""`edgeqaf.rounding.definition`, and a block of `edgeqaf.gptq`, compiled: a block is read once and stays in cache.

Bit for bit their numpy definitions: the operations are the same, in float32, each rounded by itself, and sums over a
block are in the order of `edgeqaf.rounding.block_sum`. Where a scale leaves float16 the kernels stop and say so; the
definition then refuses it in words.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.grid import Grid, Zero
from edgeqaf.kernels.cpu import compiled, over_rows
from edgeqaf.qtensor import QTensor
from edgeqaf.rounding import MANY, factors, refits

LANES = 8
step = numba.njit(error_model="numpy")  # of the kernels below: compiled with them, and kept in their cache


@cache
def _dot(block: int) -> Callable[..., Any]:
    """`block_sum` of a * b; acc: float32 [8] to add up in."""
    part = min(block, 128)

    @step
    def dot(a, b, acc):
        total = np.float32(0)
        for start in range(0, block, part):
            x, y = a[start : start + part], b[start : start + part]
            for k in range(LANES):
                acc[k] = x[k] * y[k]
            for i in range(1, part // LANES):
                for k in range(LANES):
                    acc[k] += x[i * LANES + k] * y[i * LANES + k]
            found = ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]))
            total = found if start == 0 else total + found
        return total

    return dot  # type: ignore[no-any-return]


@step
def _half(x):
    """`to_half`: ties to even; not finite beyond float16."""
    size = abs(x)
    if not size < np.float32(65520):
        return np.float32(np.inf)
    if size < np.float32(2.0**-14):  # subnormal there: a multiple of 2^-24, the last place of a float32 near 1/2
        rounded = (size + np.float32(0.5)) - np.float32(0.5)
    else:  # 11 bits are kept, by Veltkamp's splitting
        bound = size * np.float32(8193)
        rounded = bound - (bound - size)
    return np.copysign(rounded, x)


@cache
def _codes(grid: Grid) -> Callable[..., None]:
    """`rounding._round` on a block: codes as float32."""
    offset, stored, block = grid.zero is Zero.OFFSET, grid.zero is Zero.CODE, grid.block
    signed, centre = grid.zero is Zero.NONE and not grid.centre, np.float32(grid.centre)
    lo, hi, half = np.float32(grid.lo), np.float32(grid.hi), np.float32(0.5)

    @step
    def codes(w, scale, zero, found):
        inverse = np.float32(1) / scale
        inverse = inverse if abs(inverse) < np.float32(np.inf) else np.float32(0)
        whole = np.rint(zero) if stored else np.float32(0)
        for j in range(block):
            x = (w[j] - zero) * inverse if offset else w[j] * inverse
            if signed:
                x = np.copysign(np.floor(abs(x) + half), x)
            elif stored:
                x = np.floor(x + centre + half) + whole
            else:
                x = np.floor(x + centre + half)
            found[j] = min(max(x, lo), hi)

    return codes  # type: ignore[no-any-return]


@cache
def _values(grid: Grid) -> Callable[..., None]:
    """`decode` on a block."""
    offset, stored, centre = grid.zero is Zero.OFFSET, grid.zero is Zero.CODE, np.float32(grid.centre)
    block = grid.block

    @step
    def values(codes, scale, zero, found):
        for j in range(block):
            found[j] = codes[j] * scale + zero if offset else (codes[j] - (zero if stored else centre)) * scale

    return values  # type: ignore[no-any-return]


@cache
def _ends(grid: Grid) -> Callable[..., Any]:
    """`rounding._end_of_grid` on a block: scale and zero, not rounded yet."""
    offset, stored, block, lo = grid.zero is Zero.OFFSET, grid.zero is Zero.CODE, grid.block, np.float32(grid.lo)
    steps, side = np.float32(grid.hi - grid.lo), np.float32(grid.lo - grid.centre if grid.centre else grid.hi)
    signed, most = not grid.centre, np.float32(np.finfo(np.float32).max)

    @step
    def ends(w):
        if not (offset or stored):
            largest = w[0]
            for j in range(1, block):
                largest = w[j] if abs(w[j]) > abs(largest) else largest
            return (abs(largest) if signed else largest) / side, np.float32(0)
        low = high = w[0]
        for j in range(1, block):
            low, high = min(low, w[j]), max(high, w[j])
        low, high = low + np.float32(0), high + np.float32(0)
        if offset:
            return (high - low) / steps, low
        low, high = min(low, np.float32(0)), max(high, np.float32(0))
        scale = (high - low) / steps
        zero = lo - low / scale
        return scale, np.float32(0) if zero != zero else min(max(zero, -most), most)

    return ends  # type: ignore[no-any-return]


@cache
def _fit(grid: Grid) -> Callable[..., Any]:
    """`rounding._least_squares` on a block; a, b: float32 [block] for what is multiplied."""
    offset, stored, centre = grid.zero is Zero.OFFSET, grid.zero is Zero.CODE, np.float32(grid.centre)
    block, count, dot = grid.block, np.float32(grid.block), _dot(grid.block)

    @step
    def fit(w, codes, scale, zero, a, b, ones, acc):
        if offset:
            mean_c, mean_w = dot(codes, ones, acc) / count, dot(w, ones, acc) / count
            for j in range(block):
                a[j], b[j] = codes[j] - mean_c, w[j] - mean_w
            bottom = dot(a, a, acc)
            fitted = dot(a, b, acc) / bottom if bottom > 0 else scale
            return fitted, mean_w - fitted * mean_c
        middle = np.rint(zero) if stored else centre
        for j in range(block):
            a[j] = codes[j] - middle
        bottom = dot(a, a, acc)
        return (dot(a, w, acc) / bottom if bottom > 0 else scale), zero

    return fit  # type: ignore[no-any-return]


@cache
def _candidates(grid: Grid, search: bool) -> tuple[Callable[..., Any], int]:
    """`rounding._candidates` on a block, into arrays: whether all can be stored; and how many there are."""
    offset, stored = grid.zero is Zero.OFFSET, grid.zero is Zero.CODE
    codes, ends, fit = _codes(grid), _ends(grid), _fit(grid)
    fan, again, lo, hi = np.array(factors(grid)), refits(grid), np.float32(grid.lo), np.float32(grid.hi)
    half = np.float32((grid.hi - grid.lo) / 2)
    middle, most = lo + half, np.float32(np.finfo(np.float32).max)
    starts = 2 if stored or (not offset and grid.hi - grid.lo + 1 < MANY) else 1
    count = 1 + starts * len(fan) if search else 1

    @step
    def candidates(w, scales, zeros, found, a, b, ones, acc):
        scale, zero = ends(w)
        for i in range(count):
            fitted, z = scale, zero
            if i:
                fitted, second = scale * fan[(i - 1) // starts], (i - 1) % starts
                if offset:
                    z = zero + (scale - fitted) * half
                elif stored:
                    exact = (middle - zero) * scale / fitted
                    exact = middle - (np.float32(0) if exact != exact else min(max(exact, -most), most))
                    z = min(max(np.ceil(exact) if second else np.floor(exact), lo), hi)
                elif second:
                    fitted = -fitted
                for _ in range(again):
                    codes(w, fitted, z, found)
                    fitted, z = fit(w, found, fitted, z, a, b, ones, acc)
            scales[i] = _half(fitted)
            zeros[i] = _half(z) if offset else min(max(np.rint(z), lo), hi) if stored else np.float32(0)
            if not (abs(scales[i]) < np.inf and abs(zeros[i]) < np.inf):
                return False
        return True

    return candidates, count


@cache
def _nearest(grid: Grid, search: bool) -> Callable[..., None]:
    """`rounding._quantize_rows`."""
    block, codes, values, dot = grid.block, _codes(grid), _values(grid), _dot(grid.block)
    candidates, count = _candidates(grid, search)

    @compiled
    def kernel(weights, stored, scale, zero, failed, first, last):
        found, a, b = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
        ones = np.ones(block, np.float32)
        scales, zeros, acc = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(LANES, np.float32)
        for r in range(first, last):
            for at in range(scale.shape[1]):
                w, least = weights[r, at * block : (at + 1) * block], np.float32(0)
                if not candidates(w, scales, zeros, found, a, b, ones, acc):
                    failed[0] = 1
                    return
                to = stored[r, at * block : (at + 1) * block]
                for i in range(count):
                    codes(w, scales[i], zeros[i], found)
                    if count > 1:
                        values(found, scales[i], zeros[i], a)
                        for j in range(block):
                            a[j] -= w[j]
                        error = dot(a, a, acc)
                        if i and not error < least:
                            continue
                        least = error
                    scale[r, at], zero[r, at] = scales[i], zeros[i]
                    for j in range(block):
                        to[j] = np.int8(found[j])

    return kernel


def quantize(weights: Floats, grid: Grid, *, search: bool) -> QTensor | None:
    """`edgeqaf.rounding.definition`; None where a scale leaves float16."""
    weights, failed = np.ascontiguousarray(weights), np.zeros(1, np.int8)
    out, inputs = weights.shape
    codes, scale = np.empty((out, inputs), np.int8), np.empty((out, inputs // grid.block), np.float32)
    zero = np.empty_like(scale)
    over_rows(_nearest(grid, search), out, inputs, weights, codes, scale, zero, failed)
    return None if failed[0] else QTensor(grid, codes, scale, None if grid.zero is Zero.NONE else zero)
