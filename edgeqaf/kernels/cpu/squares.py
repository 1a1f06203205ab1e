"""`edgeqaf.adapters.codes.squares` on a CPU: both means of (G s)^2 in one pass over G.

Rows are taken in bands of `ROWS`; the squares of a column are added up row by row within a band, then band by band,
those of a row in as many partial sums as a block has columns, which are added up in turn. The order is fixed by the
matrix's shape, whatever the threads. As the terms are not negative, a float32 sum in which a term takes part in at
most d additions lies within a factor (1 + 2^-24)^d of the exact one (Higham, Accuracy and Stability, section 4.2).
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

import numpy as np
from torch import Tensor

from edgeqaf.compiled import compiled
from edgeqaf.kernels.cpu import over_rows
from edgeqaf.noise import ROWS


@compiled
def _kernel(grad, scale, by_row, by_column, first, last):
    block = grad.shape[1] // scale.shape[1]
    partial = np.empty(block, np.float32)
    for r in range(first, last):
        partial[:] = 0
        sums = by_column[r // ROWS]
        for b in range(scale.shape[1]):
            s = scale[r, b]
            for j in range(block):
                g = grad[r, b * block + j] * s
                partial[j] += g * g
                sums[b * block + j] += g * g
        total = np.float32(0)
        for j in range(block):
            total += partial[j]
        by_row[r] = total


def squares(grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Means of (grad * scale)^2: float32 [out], over the inputs, and [in], over the outputs.

    grad: [out, in], float32, bfloat16 or float16; scale: float32 [out, in / block].
    """
    out, inputs = grad.shape
    by_row, by_column = scale.new_empty(out), scale.new_zeros(-(-out // ROWS), inputs)
    parts = [t.numpy() for t in (grad.float(), scale, by_row, by_column)]
    over_rows(_kernel, out, inputs, *parts, band=ROWS)
    columns = by_column[0]
    for band in by_column[1:]:
        columns += band
    return by_row / inputs, columns / out
