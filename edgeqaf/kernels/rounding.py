"""`edgeqaf.rounding.definition`, and a block of `edgeqaf.gptq`, compiled (`edgeqaf.kernels.searches`).

Bit for bit their numpy definitions: the operations are the same, in float32, each rounded by itself, and sums over a
block are in the order of `edgeqaf.rounding.block_sum`. Where a scale leaves float16 the kernels stop and say so; the
definition then refuses it in words.
"""

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.grid import Grid, Zero
from edgeqaf.kernels import searches
from edgeqaf.kernels.cpu import over_rows
from edgeqaf.kernels.lanes import WIDE
from edgeqaf.qtensor import QTensor


def quantize(weights: Floats, grid: Grid, *, search: bool) -> QTensor | None:
    """`edgeqaf.rounding.definition`; None where a scale leaves float16."""
    blocks, failed = np.ascontiguousarray(weights).reshape(-1, grid.block), np.zeros(1, np.int8)
    codes, scale = np.empty(blocks.shape, np.int8), np.empty(len(blocks), np.float32)
    zero = np.empty_like(scale)
    over_rows(searches.nearest(grid, search), *blocks.shape, blocks, codes, scale, zero, failed, band=WIDE)
    if failed[0]:
        return None
    each = len(weights), -1
    kept = None if grid.zero is Zero.NONE else zero.reshape(each)
    return QTensor(grid, codes.reshape(each), scale.reshape(each), kept)


def in_order(block: Floats, grid: Grid, shares: Floats, costs: Floats) -> tuple[QTensor, Floats] | None:
    """`edgeqaf.gptq.tried`; None where a scale leaves float16."""
    left, failed = np.ascontiguousarray(block), np.zeros(1, np.int8)
    codes, errors, scale = np.empty(left.shape, np.int8), np.empty_like(left), np.empty(len(left), np.float32)
    zero = np.empty_like(scale)
    parts = [left, np.ascontiguousarray(shares[:, : grid.block]), costs, codes, scale, zero, errors, failed]
    over_rows(searches.in_order(grid), *left.shape, *parts, band=WIDE)
    kept = None if grid.zero is Zero.NONE else zero[:, None]
    return None if failed[0] else (QTensor(grid, codes, scale[:, None], kept), errors)
