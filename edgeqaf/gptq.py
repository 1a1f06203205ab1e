"""GPTQ for one matrix (Frantar et al., arXiv:2210.17323, algorithm 1), onto the blocks of a grid.

Columns are quantized in order. What the rounding of column j loses is made up for by the columns after it, by row j of
U, the upper Cholesky factor of the inverse of H = X^T X: that changes the layer's output on the calibration text least.
The columns of a block are updated one by one, those after it once, when the block is done (the paper's lazy batches).

A block's scale and zero are chosen when the block is reached, from the weights as they then are. The candidates are
those of the search in `edgeqaf.rounding`. Each is tried on the whole block, its columns making up for one another, and
the one of least loss is kept: the sum of squared errors, each over U_jj^2 (the paper's equation 2). Candidates are
float16 values, so the error that is made up for is that of the integers and scales that are stored.

The paper's act-order (columns by falling diagonal of H) is left out: a block is of neighbours in every format that is
exported, and codes chosen out of their place would need an index that no runtime reads.
"""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from edgeqaf import rounding
from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, decode

Doubles = NDArray[np.float64]


def quantize(weights: Floats, grid: Grid, upper: Doubles) -> QTensor:
    """float32 [out, in] -> QTensor on ``grid``; upper: float64 [in, in], from `inverse_factor`.

    Raises Refused where a scale would overflow float16.
    """
    left, diagonal = weights.copy(), upper.diagonal()
    parts = []
    for start in range(0, weights.shape[1], grid.block):
        here, after = slice(start, start + grid.block), slice(start + grid.block, None)
        shares = (upper[here] / diagonal[here, None]).astype(np.float32)
        costs = (diagonal[here].min() / diagonal[here]) ** 2
        q, errors = _block(left[:, here], grid, shares[:, here], costs.astype(np.float32))
        parts.append(q)
        left[:, after] -= errors @ shares[:, after]
    return _joined(parts, 1)


def inverse_factor(hessian: Doubles, damping: float) -> Doubles:
    """U, float64 [in, in], upper triangular, with U^T U the inverse of H + damping * mean(diagonal of H) * I.

    hessian: any positive multiple of X^T X. An input that is zero throughout the text gets a row and column of the
    damping alone: its weights are rounded, and make up for no others. Raises Refused where H is not positive definite.

    With J the matrix that reverses an order and J H J = L L^T, U is J L^-1 J: no inverse is factored.
    """
    mean = float(hessian.diagonal().mean())
    damped = hessian + (damping * mean if mean else 1.0) * np.eye(len(hessian))
    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(damped[::-1, ::-1].copy()))
    if int(failed) or not np.isfinite(mean):
        raise Refused(
            f"the Hessian of {len(hessian)} inputs is not positive definite with a damping of {damping}",
            "raise --damping, or give more text with --calib-tokens",
        )
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(hessian), dtype=torch.float64), upper=False)
    return np.ascontiguousarray(inverse.numpy()[::-1, ::-1])


def _block(block: Floats, grid: Grid, shares: Floats, costs: Floats) -> tuple[QTensor, Floats]:
    """`tried` for any number of rows, compiled where numba is."""
    if find_spec("numba") and grid.block <= rounding.WIDEST:
        from edgeqaf.kernels.rounding import in_order

        found = in_order(block, grid, shares, costs)
        if found is not None:
            return found
    tiles = [block[start : start + rounding.ROWS] for start in range(0, len(block), rounding.ROWS)]
    parts = [tried(tile, grid, shares, costs) for tile in tiles]
    return _joined([q for q, _ in parts], 0), np.concatenate([errors for _, errors in parts])


def tried(block: Floats, grid: Grid, shares: Floats, costs: Floats) -> tuple[QTensor, Floats]:
    """Some rows of one block [rows, block]: its tensor, and what each code loses, float32 [rows, block]."""
    rows, tries = len(block), rounding.candidates(block, grid)
    scale = np.concatenate([scale for scale, _ in tries])
    zero = None if grid.zero is Zero.NONE else np.concatenate([zero for _, zero in tries])
    found, errors = _in_order(np.tile(block, (len(tries), 1)), grid, scale, zero, shares)
    loss = rounding.block_sum(errors**2 * costs).reshape(len(tries), rows)
    best = loss.argmin(0) * rows + np.arange(rows)
    kept = QTensor(grid, found.codes[best], scale[best], None if zero is None else zero[best])
    return kept, errors[best]


def _in_order(left: Floats, grid: Grid, scale: Floats, zero: Floats | None, shares: Floats) -> tuple[QTensor, Floats]:
    """Codes chosen column by column, each error shared out among the columns after it: the tensor, and the errors."""
    single, codes, errors = replace(grid, block=1), np.empty(left.shape, np.int8), np.empty_like(left)
    for j in range(grid.block):
        q = rounding.nearest(left[:, j : j + 1], single, scale, zero)
        codes[:, j : j + 1] = q.codes
        errors[:, j : j + 1] = left[:, j : j + 1] - decode(q)
        left[:, j + 1 :] -= errors[:, j : j + 1] * shares[j, j + 1 :]
    return QTensor(grid, codes, scale, zero), errors


def _joined(parts: list[QTensor], axis: int) -> QTensor:
    def join(part: str) -> Floats:
        whole: Floats = np.concatenate([getattr(q, part) for q in parts], axis)
        return whole

    grid = parts[0].grid
    return QTensor(grid, join("codes"), join("scale"), None if grid.zero is Zero.NONE else join("zero"))
