"""`edgeqaf.adapters.codes.squares` on a GPU: both means of (G s)^2 in one pass over G.

A program sums a band of rows by a run of blocks; what it finds goes to a row of its own in two small matrices, whose
columns are then summed. Every square is the reference's to the bit; only the order of the sums is another, fixed by
the matrix's shape. The terms are not negative, so a float32 sum in which a term takes part in at most d additions
lies within a factor (1 + 2^-24)^d of the exact one (Higham, Accuracy and Stability, section 4.2): d is at most
`BLOCKS` * 32 + in / (`BLOCKS` * 32) for the mean of a row, and `BAND` + out / `BAND` for that of a column.
The reference is within such a bound itself. What follows for a code: its move differs by parts in a million
where both sums err as they typically do, and so does the probability that it rounds otherwise.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import triton
import triton.language as tl
from torch import Tensor

from edgeqaf.kernels.cuda import EXACT

ROWS, BLOCKS, BAND = 16, 8, 128


@triton.jit
def _squares(grad, scale, by_row, by_column, out, blocks, BLOCK: tl.constexpr, ROWS: tl.constexpr,
             BLOCKS: tl.constexpr, BAND: tl.constexpr):  # fmt: skip
    run, band = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    block = (run * BLOCKS + tl.arange(0, BLOCKS))[None, :, None]
    column = block * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    columns = tl.zeros([BLOCKS, BLOCK], tl.float32)
    for first in range(0, BAND, ROWS):
        rows = band * BAND + first + tl.arange(0, ROWS)
        row = rows[:, None, None]
        inside = (row < out) & (block < blocks)
        g = tl.load(grad + row * blocks * BLOCK + column, mask=inside, other=0.0).to(tl.float32)
        g = g * tl.load(scale + row * blocks + block, mask=inside, other=0.0)
        square = g * g
        columns += tl.sum(square, 0)
        tl.store(by_row + run * out + rows, tl.sum(tl.sum(square, 2), 1), mask=rows < out)
    flat = (run * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    at = by_column + band * blocks * BLOCK + flat * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(at, columns, mask=flat < blocks)


def squares(grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Means of (grad * scale)^2: float32 [out], over the inputs, and [in], over the outputs.

    grad: [out, in], float32, bfloat16 or float16; scale: float32 [out, in / block].
    """
    (out, inputs), blocks = grad.shape, scale.shape[1]
    bands, runs = triton.cdiv(out, BAND), triton.cdiv(blocks, BLOCKS)
    by_row, by_column = scale.new_empty(runs, out), scale.new_empty(bands, inputs)
    _squares[(runs, bands)](
        grad.contiguous(), scale.contiguous(), by_row, by_column, out, blocks, BLOCK=inputs // blocks, ROWS=ROWS,
        BLOCKS=BLOCKS, BAND=BAND, **EXACT,
    )  # fmt: skip
    return by_row.sum(0).div_(inputs), by_column.sum(0).div_(out)
