"""The search of `edgeqaf.rounding`, and a block of `edgeqaf.gptq`, many blocks at once (`edgeqaf.kernels.lanes`)."""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.grid import Grid
from edgeqaf.kernels import scalars
from edgeqaf.kernels.constants import plan
from edgeqaf.kernels.lanes import (
    INVERSE,
    KEPT,
    KEPT_ZERO,
    LEAST,
    PARTS,
    ROWS,
    SCALE,
    TOTAL,
    WHOLE,
    WIDE,
    ZERO,
    begin,
    block_sum,
    candidate,
    choose,
    squared_error,
    weight,
)
from edgeqaf.kernels.scalars import step
from edgeqaf.rounding import factors


@cache
def nearest(grid: Grid, search: bool) -> Callable[..., None]:
    """`rounding._quantize_rows` of blocks [.., block], those from first to last."""
    g, fan = plan(grid, search), np.array(factors(grid))

    @compiled
    def kernel(blocks, stored, scale, zero, failed, first, last):
        w, steps = np.empty((g.block, WIDE), np.float32), np.empty((g.block, WIDE), np.float32)
        parts, row = np.empty((PARTS, WIDE), np.float32), np.zeros((ROWS, WIDE), np.float32)
        for at in range(first, last, WIDE):
            begin(g, blocks, at, last, w, steps, parts, row)
            for i in range(g.tries):
                failed[0] |= candidate(g, fan, i, w, steps, parts, row)
                if g.tries > 1:
                    block_sum(g, squared_error, w, steps, parts, row, TOTAL)
                choose(i, row)
            if failed[0]:
                return
            for n in range(min(WIDE, last - at)):
                s, z = row[KEPT, n], row[KEPT_ZERO, n]
                block, to, inverse, whole = blocks[at + n], stored[at + n], scalars.inverse(s), np.rint(z)
                scale[at + n], zero[at + n] = s, z
                for j in range(g.block):
                    to[j] = np.int8(scalars.code(g, block[j], inverse, z, whole))

    return kernel


@step
def _tried(g, w, shares, costs, row, left, steps, lost):
    """A candidate's codes, each weight's error made up for by those after it; ``left``: what each error costs."""
    for j in range(g.block):
        for n in range(WIDE):
            left[j, n] = w[j, n]
    for j in range(g.block):
        for n in range(WIDE):
            steps[j, n] = scalars.code(g, left[j, n], row[INVERSE, n], row[ZERO, n], row[WHOLE, n])
        for n in range(WIDE):
            lost[j, n] = left[j, n] - scalars.value(g, steps[j, n], row[SCALE, n], row[ZERO, n])
        for k in range(j + 1, g.block):
            share = shares[j, k]
            for n in range(WIDE):
                left[k, n] -= lost[j, n] * share
        for n in range(WIDE):
            left[j, n] = lost[j, n] * lost[j, n] * costs[j]


@step
def _keep(g, i, found, row, kept):
    """The same for rows of each block; before `_choose`."""
    for j in range(g.block):
        for n in range(WIDE):
            kept[j, n] = found[j, n] if row[TOTAL, n] < row[LEAST, n] or i == 0 else kept[j, n]


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
            begin(g, blocks, at, last, w, steps, parts, row)
            for i in range(g.tries):
                failed[0] |= candidate(g, fan, i, w, steps, parts, row)
                _tried(g, w, shares, costs, row, left, steps, lost)
                block_sum(g, weight, left, steps, parts, row, TOTAL)
                _keep(g, i, steps, row, codes)
                _keep(g, i, lost, row, kept)
                choose(i, row)
            if failed[0]:
                return
            for n in range(min(WIDE, last - at)):
                scale[at + n], zero[at + n] = row[KEPT, n], row[KEPT_ZERO, n]
                for j in range(g.block):
                    stored[at + n, j], errors[at + n, j] = np.int8(codes[j, n]), kept[j, n]

    return kernel
