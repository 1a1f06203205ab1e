"""`edgeqaf.packed.weights` on a GPU: packed codes to weights in one pass, no float32 matrix between.

In float32 a code less its centre or integer zero has at most 9 significant bits and a float16 scale 11, so the
product is exact; with a float zero the sum is the only rounding, contracted or not. Zeros keep their sign. The
cast to 16 bits is the hardware's, to nearest even, as torch's.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgeqaf.grid import Zero
from edgeqaf.kernels.cuda import EXACT
from edgeqaf.kernels.cuda.lanes import columns, readable, tile, unpacked
from edgeqaf.packed import Packed, lanes

BLOCKS = 128  # of a program: the matrix is one long row of them


@triton.jit
def _weights(codes, scale, zero, weights, count, ZERO: tl.constexpr, CENTRE: tl.constexpr, LANES: tl.constexpr,
             BLOCK: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    _, block, inside = tile(1, count, 1, BLOCKS)
    column, byte = columns(LANES, BLOCK)
    code = unpacked(tl.load(codes + block * (BLOCK // LANES) + byte, mask=inside, other=0), LANES)
    s = tl.load(scale + block, mask=inside, other=0.0)
    if ZERO == "offset":
        weight = code.to(tl.float32) * s + tl.load(zero + block, mask=inside, other=0.0)
    elif ZERO == "code":
        weight = (code.to(tl.float32) - tl.load(zero + block, mask=inside, other=0.0)) * s
    else:
        weight = (code - CENTRE).to(tl.float32) * s
    tl.store(weights + block * BLOCK + column, weight.to(weights.dtype.element_ty), mask=inside)


def weights(packed: Packed, rows: slice, dtype: torch.dtype) -> Tensor:
    """``decode`` of some rows, cast once: [rows, in] of ``dtype`` (float32, bfloat16 or float16)."""
    grid, scale = packed.grid, packed.scale[rows].contiguous()
    codes = readable(packed.codes[rows].contiguous(), grid)
    zero = scale if packed.zero is None else packed.zero[rows].contiguous()
    out = torch.empty(len(scale), packed.shape[1], dtype=dtype, device=scale.device)
    _weights[(triton.cdiv(scale.numel(), BLOCKS), 1)](
        codes, scale, zero, out, scale.numel(), ZERO=grid.zero.value if packed.zero is not None else Zero.NONE.value,
        CENTRE=grid.centre, LANES=lanes(grid), BLOCK=grid.block, BLOCKS=BLOCKS, **EXACT,
    )  # fmt: skip
    return out
