"""`edgeqaf.adapters.codes.move` on a CPU: the whole update of a weight in registers, codes and remainders in place."""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from edgeqaf import noise
from edgeqaf.adapters.codes import Codes
from edgeqaf.compiled import compiled
from edgeqaf.grid import Grid
from edgeqaf.kernels.cpu import over_rows
from edgeqaf.packed import lanes
from edgeqaf.residual import PARTS


@cache
def _made(grid: Grid) -> Callable[..., None]:
    """The loop for a grid: its layout and its ends are constants of the compiled code."""
    count, steps, parts = lanes(grid), int(math.log2(PARTS)), PARTS
    width, shift, mask = grid.block // count, 8 // count, np.uint8((1 << (8 // count)) - 1)
    low, high = np.int32(grid.lo * PARTS), np.int32(grid.hi * PARTS + PARTS - 1)
    stride, band = noise.STRIDE, noise.ROWS

    @compiled
    def kernel(codes, remainder, grad, scale, row, column, table, starts, limit, first, last):
        together = np.empty(width, codes.dtype)
        for r in range(first, last):
            start, by_row = starts[r // band] + stride * (r % band), row[r]
            for b in range(scale.shape[1]):
                s, byte = scale[r, b], codes[r, b * width : (b + 1) * width]
                for j in range(width):
                    together[j] = 0
                for lane in range(count):
                    at, by = (b * count + lane) * width, np.uint8(lane * shift)
                    g, by_column, noisy = grad[r, at : at + width], column[at:], table[start + at :]
                    left = remainder[r, at : at + width]
                    for j in range(width):
                        moves = g[j] * s * by_row * by_column[j]
                        moves = min(max(moves, -limit), limit) + noisy[j]
                        moves = moves if moves == moves else np.float32(0)  # not a number moves nothing
                        code = byte[j] if count == 1 else (byte[j] >> by) & mask
                        value = np.int32(code * parts + left[j] + parts // 2 - np.int32(np.floor(moves)))
                        value = min(max(value, low), high)
                        left[j] = np.int8((value & (parts - 1)) - parts // 2)
                        if count == 1:
                            together[j] = value >> steps
                        else:
                            together[j] |= np.uint8(np.uint8(value >> steps) << by)
                for j in range(width):
                    byte[j] = together[j]

    return kernel


def move(grad: Tensor, scale: Tensor, row: Tensor, column: Tensor, limit: float, part: Codes) -> None:
    """c <- clip(c - SR(clip(grad scale row column, -limit, limit)) / 128), in place in ``part``.

    grad: [out, in], float32, bfloat16 or float16; scale: float32 [out, in / block]; row, column: float32 [out], [in].
    """
    out, inputs = grad.shape
    key, places = noise.key(part.seed, int(part.updates)), noise.places(inputs)
    starts = [noise.mix(key + i * noise.BAND) % places for i in range(-(-out // noise.ROWS))]
    codes = part.codes.view(torch.int8 if lanes(part.grid) == 1 else torch.uint8)
    parts = [t.numpy() for t in (codes, part.remainder, grad.float(), scale, row, column, noise.table("cpu"))]
    over_rows(_made(part.grid), out, inputs, *parts, np.array(starts), np.float32(limit))
