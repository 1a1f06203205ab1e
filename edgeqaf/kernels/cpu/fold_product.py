"""`edgeqaf.adapters.lowrank.fold_product` on a CPU: rounding, fold and packing in one pass over a float32 product.

torch multiplies the snapped factors in float32. The screen is that of `edgeqaf.exact.rounded_product`: an entry that
lies within the product's error of a threshold is computed again in float64, where no sum of these factors rounds.
A block without such an entry never branches.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from edgeqaf.compiled import compiled
from edgeqaf.exact import error_units, snap_a, snap_b
from edgeqaf.grid import Grid
from edgeqaf.kernels.cpu import over_rows
from edgeqaf.packed import Packed, lanes
from edgeqaf.residual import PARTS


@cache
def _made(grid: Grid, starts: bool) -> Callable[..., None]:
    """The loop for a grid, with or without a start: its layout and its ends are constants of the compiled code."""
    count, block = lanes(grid), grid.block
    width, shift, mask = block // count, 8 // count, np.uint8((1 << (8 // count)) - 1)
    low, high, half, one, part = (np.float32(x) for x in (grid.lo, grid.hi, 0.5, 1, 1 / PARTS))

    @compiled
    def kernel(codes, folded, value, b, a, largest, factor, start, units, first, last):
        steps, halves = np.empty(block, np.float32), np.full(block, half)
        for r in range(first, last):
            for at in range(factor.shape[1]):
                f = np.float32(factor[r, at])
                settled = half - (largest[r] * abs(f) + one) * units
                here = slice(at * block, (at + 1) * block)
                if starts:
                    own = start[r, here]
                    for j in range(block):
                        halves[j] = np.float32(own[j]) * part + half
                product, doubtful = value[r, here], 0
                for j in range(block):
                    x = product[j] * f + halves[j]
                    steps[j] = np.floor(x)
                    doubtful += 0 if abs(x - steps[j] - half) <= settled else 1
                if doubtful:
                    for j in range(block):
                        exact = 0.0
                        for k in range(a.shape[0]):
                            exact += np.float64(b[r, k]) * np.float64(a[k, at * block + j])
                        steps[j] = np.floor(exact * factor[r, at] + np.float64(halves[j]))
                byte, to = codes[r, at * width : (at + 1) * width], folded[r, at * width : (at + 1) * width]
                for j in range(width):
                    to[j] = 0
                for lane in range(count):
                    by, step = np.uint8(lane * shift), steps[lane * width : (lane + 1) * width]
                    for j in range(width):
                        code = np.float32(byte[j] if count == 1 else (byte[j] >> by) & mask)
                        code = min(max(code + step[j], low), high)
                        if count == 1:
                            to[j] = np.int8(code)
                        else:
                            to[j] |= np.uint8(np.uint8(np.int32(code)) << by)

    return kernel


def fold_product(base: Packed, b: Tensor, a: Tensor, factor: Tensor, start: Tensor | None) -> Tensor:
    """Packed codes uint8 [out, in / lanes]: ``base``'s plus `rounded_product` of the same, within the grid.

    b, a: float32 [out, r], [r, in]; factor: float64 [out, in / block]; start: int8 [out, in], in 1/128, or None.
    """
    b, a = snap_b(b.detach()), snap_a(a.detach())
    kind, kernel = torch.int8 if lanes(base.grid) == 1 else torch.uint8, _made(base.grid, start is not None)
    folded, largest = torch.empty_like(base.codes), b.abs().sum(1) * a.abs().max()
    for rows in base.tiles():
        value = b[rows] @ a
        left = torch.zeros(1, 1, dtype=torch.int8) if start is None else start[rows]
        codes, to = (t[rows].view(kind) for t in (base.codes, folded))
        parts = [t.numpy() for t in (codes, to, value, b[rows], a, largest[rows], factor[rows], left)]
        over_rows(kernel, *value.shape, *parts, np.float32(error_units(len(a))))
    return folded
