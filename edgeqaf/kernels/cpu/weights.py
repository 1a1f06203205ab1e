"""`edgeqaf.packed.weights` on a CPU: packed codes to weights in one pass."""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from edgeqaf.compiled import compiled
from edgeqaf.grid import Grid, Zero
from edgeqaf.kernels.cpu import over_rows
from edgeqaf.packed import Packed, lanes


@cache
def _made(grid: Grid, narrow: bool) -> Callable[..., None]:
    """The loop for a grid: its layout and the form of its zero are constants of the compiled code.

    narrow: to the bits of bfloat16, to nearest even, instead of float32.
    """
    count, block = lanes(grid), grid.block
    width, shift, mask = block // count, 8 // count, np.uint8((1 << (8 // count)) - 1)
    offset, stored, centre = grid.zero is Zero.OFFSET, grid.zero is Zero.CODE, np.float32(grid.centre)

    @compiled
    def kernel(codes, scale, zero, out, first, last):
        found = np.empty(block, np.float32)
        bits = found.view(np.uint32)
        for r in range(first, last):
            for b in range(scale.shape[1]):
                s, z = scale[r, b], zero[r, b] if stored or offset else centre
                byte, to = codes[r, b * width : (b + 1) * width], out[r, b * block : (b + 1) * block]
                for lane in range(count):
                    by, part = np.uint8(lane * shift), found[lane * width : (lane + 1) * width]
                    for j in range(width):
                        code = np.float32(byte[j] if count == 1 else (byte[j] >> by) & mask)
                        part[j] = code * s + z if offset else (code - z) * s
                for j in range(block):
                    if narrow:
                        odd = (bits[j] >> np.uint32(16)) & np.uint32(1)
                        to[j] = (bits[j] + np.uint32(0x7FFF) + odd) >> np.uint32(16)
                    else:
                        to[j] = found[j]

    return kernel


def weights(packed: Packed, rows: slice, dtype: torch.dtype) -> Tensor:
    """``decode`` of some rows, cast once: [rows, in] of ``dtype`` (float32, bfloat16 or float16)."""
    scale, narrow = packed.scale[rows], dtype is torch.bfloat16
    codes = packed.codes[rows].view(torch.int8 if lanes(packed.grid) == 1 else torch.uint8)
    zero = scale if packed.zero is None else packed.zero[rows]
    out = torch.empty(len(scale), packed.shape[1], dtype=dtype if narrow else torch.float32)
    parts = [t.numpy() for t in (codes, scale, zero, out.view(torch.uint16) if narrow else out)]
    over_rows(_made(packed.grid, narrow), *out.shape, *parts)
    return out.to(dtype)
