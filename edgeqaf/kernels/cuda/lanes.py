"""What the kernels share: how a matrix is cut into tiles, and the codes of a tile's bytes.

A tile has the axes [rows, blocks, lanes, bytes]: lane i of byte j of a block is its column ``i * bytes + j``, as
`edgeqaf.packed` lays codes out. Read in this order the columns of a tile are neighbours in memory. Codes of 8 bits
have one lane, and their bytes are read as int8.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgeqaf.grid import Grid
from edgeqaf.packed import lanes


@triton.jit
def tile(out, blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """Of this program: rows [ROWS, 1, 1, 1], blocks [1, BLOCKS, 1, 1] (int64), and which of them the matrix has."""
    row = (tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None, None, None]
    block = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[None, :, None, None]
    return row, block, (row < out) & (block < blocks)


@triton.jit
def columns(LANES: tl.constexpr, BLOCK: tl.constexpr):
    """The columns of a block, int32 [1, 1, lanes, bytes]; and its bytes, [1, 1, 1, bytes]."""
    BYTES: tl.constexpr = BLOCK // LANES
    byte = tl.arange(0, BYTES)[None, None, None, :]
    return tl.arange(0, LANES)[None, None, :, None] * BYTES + byte, byte


@triton.jit
def unpacked(byte, LANES: tl.constexpr):
    """int32 codes [rows, blocks, lanes, bytes] of bytes [rows, blocks, 1, bytes]."""
    WIDTH: tl.constexpr = 8 // LANES
    code = byte.to(tl.int32) >> (tl.arange(0, LANES) * WIDTH)[None, None, :, None]
    if LANES > 1:
        code = code & ((1 << WIDTH) - 1)
    return code


@triton.jit
def packed(code, LANES: tl.constexpr):
    """The inverse of `unpacked`, int32."""
    WIDTH: tl.constexpr = 8 // LANES
    return tl.sum(code << (tl.arange(0, LANES) * WIDTH)[None, None, :, None], 2, keep_dims=True)


def readable(codes: Tensor, grid: Grid) -> Tensor:
    """Packed codes as the kernels read them: int8 where a byte is a code."""
    return codes.view(torch.int8) if lanes(grid) == 1 else codes
