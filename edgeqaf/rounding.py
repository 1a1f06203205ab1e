"""Round to nearest, with a search for the scale of each block.

Taking the block's largest weight as the end of the grid is seldom best: a slightly smaller or
larger step often leaves less squared error over the other 31 weights. For each block we try the
end-of-grid scale times a fan of factors, refine each by least squares for the codes it gives, round
the parameters to float16, and keep the triple with the smallest error as it will be stored. The
unsearched scale is among the candidates, so the search never loses.

The fewer codes a grid has, the more of a block it pays to clip, and the more codes a better scale
moves: below 16 codes the fan is wider, each scale is refined several times, and symmetric grids try
both signs, as the side with one code more need not be the largest weight's.

Everything is float32, and sums over a block are taken in one written order (`block_sum`), so that a machine
that rounds as IEEE 754 says gives the same bits.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, decode, to_half

TRIES = range(-16, 9)  # steps of the fan below and above the end-of-grid scale
FAN = 0.2  # a step of the fan, divided by the number of codes: 0.8 to 1.1 with 16 codes or more, 0.2 to 1.4 with four
MANY = 16  # codes from which one refinement is enough
REFITS = 3  # refinements with fewer codes
ROWS = 512  # rows that numpy quantizes at once, to bound memory
WIDEST = 256  # the largest block that is compiled


def quantize(weights: Floats, grid: Grid, *, search: bool = True) -> QTensor:
    """float32 [out, in] -> QTensor on ``grid`` with the least squared error found, block by block.

    Without ``search`` the end-of-grid scale is used, as ggml's reference quantizer does; codes are
    then nearest under the float16 scale that is stored, where ggml rounds under the unrounded one.
    Raises Refused where a scale would overflow float16. Compiled where numba is, to the bits of `definition`.
    """
    if find_spec("numba") and grid.block <= WIDEST:
        from edgeqaf.kernels import rounding as compiled

        found: QTensor | None = compiled.quantize(weights, grid, search=search)
        if found is not None:
            return found
    return definition(weights, grid, search=search)


def definition(weights: Floats, grid: Grid, *, search: bool = True) -> QTensor:
    """`quantize` in numpy."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # scales beyond float16 are refused below
        chunks = [_quantize_rows(weights[i : i + ROWS], grid, search) for i in range(0, len(weights), ROWS)]
    zero = None if grid.zero is Zero.NONE else np.concatenate([c.zero for c in chunks])
    return QTensor(grid, np.concatenate([c.codes for c in chunks]), np.concatenate([c.scale for c in chunks]), zero)


def _quantize_rows(weights: Floats, grid: Grid, search: bool) -> QTensor:
    blocks = weights.reshape(len(weights), -1, grid.block)
    best: QTensor | None = None
    least: Floats | None = None
    for scale, zero in _candidates(blocks, grid, search):
        q = _nearest(blocks, grid, scale, zero)
        error = block_sum((decode(q).reshape(blocks.shape) - blocks) ** 2)
        if best is None or least is None:
            best, least = q, error
            continue
        better = error < least
        best, least = _choose(better, q, best), np.where(better, error, least)
    assert best is not None
    return best


def candidates(weights: Floats, grid: Grid) -> list[tuple[Floats, Floats | None]]:
    """The (scale, zero) pairs that the search tries on float32 [out, in], each [out, in / block]; see `quantize`."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return list(_candidates(weights.reshape(len(weights), -1, grid.block), grid, True))


def nearest(weights: Floats, grid: Grid, scale: Floats, zero: Floats | None) -> QTensor:
    """float32 [out, in] -> the codes nearest to it under the parameters given, each [out, in / block]."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return _nearest(weights.reshape(len(weights), -1, grid.block), grid, scale, zero)


def _candidates(blocks: Floats, grid: Grid, search: bool) -> Iterator[tuple[Floats, Floats | None]]:
    """Float16-representable (scale, zero) pairs to try, the end-of-grid pair first."""
    scale, zero = _end_of_grid(blocks, grid)
    yield _storable(scale, blocks), zero if zero is None else _storable_zero(zero, grid, scale)
    for factor in factors(grid) if search else ():
        step = (scale * factor).astype(np.float32)
        for fitted, offset in _starts(grid, scale, zero, step):
            for _ in range(refits(grid)):
                codes = _round(blocks, grid, fitted, offset)
                fitted, offset = _least_squares(blocks, codes, grid, fitted, offset)
            yield _storable(fitted, blocks), offset if offset is None else _storable_zero(offset, grid, fitted)


def factors(grid: Grid) -> list[np.float32]:
    """The fan: what the end-of-grid scale is multiplied by."""
    return [np.float32(1 + k * FAN / min(grid.hi - grid.lo + 1, MANY)) for k in TRIES]


def refits(grid: Grid) -> int:
    """How often a scale is refined for the codes that it gives."""
    return 1 if grid.hi - grid.lo + 1 >= MANY else REFITS


def _starts(grid: Grid, scale: Floats, zero: Floats | None, step: Floats) -> Iterator[tuple[Floats, Floats | None]]:
    """(scale, zero) pairs of size ``step``: where there is a zero, the middle of the block stays where it is."""
    half = np.float32((grid.hi - grid.lo) / 2)
    if zero is None:
        yield step, None
        if grid.hi - grid.lo + 1 < MANY:
            yield -step, None
    elif grid.zero is Zero.OFFSET:
        yield step, (zero + (scale - step) * half).astype(np.float32)
    else:
        middle = grid.lo + half
        exact = middle - np.nan_to_num((middle - zero) * scale / step)
        for rounded in (np.floor(exact), np.ceil(exact)):
            yield step, np.clip(rounded, grid.lo, grid.hi).astype(np.float32)


def _end_of_grid(blocks: Floats, grid: Grid) -> tuple[Floats, Floats | None]:
    low, high = (extreme + np.float32(0) for extreme in (blocks.min(-1), blocks.max(-1)))  # no zero is negative
    steps = np.float32(grid.hi - grid.lo)
    if grid.zero is Zero.OFFSET:
        return (high - low) / steps, low
    if grid.zero is Zero.CODE:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = (high - low) / steps
        return scale, np.nan_to_num(np.float32(grid.lo) - low / scale).astype(np.float32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    if grid.centre:  # the side with one code more takes the extreme, whatever its sign
        return (largest / np.float32(grid.lo - grid.centre)).astype(np.float32), None
    return (np.abs(largest) / np.float32(grid.hi)).astype(np.float32), None


def _least_squares(
    blocks: Floats, codes: Floats, grid: Grid, scale: Floats, zero: Floats | None
) -> tuple[Floats, Floats | None]:
    """The scale (and offset) that fit ``codes`` best; a degenerate block keeps what it had."""
    if grid.zero is Zero.OFFSET:
        count = np.float32(grid.block)
        mean_c, mean_w = block_sum(codes) / count, block_sum(blocks) / count
        fitted = _slope(codes - mean_c[..., None], blocks - mean_w[..., None], scale)
        return fitted, (mean_w - fitted * mean_c).astype(np.float32)
    return _slope(codes - (grid.centre if zero is None else zero[..., None].round()), blocks, scale), zero


def _slope(steps: Floats, blocks: Floats, otherwise: Floats) -> Floats:
    bottom = block_sum(steps * steps)
    fitted: Floats = np.where(bottom > 0, block_sum(steps * blocks) / np.where(bottom > 0, bottom, 1), otherwise)
    return fitted.astype(np.float32)


def block_sum(values: Floats) -> Floats:
    """The sum over a block, whose length eight divides: lanes of eight, one after the other, then the lanes in pairs;
    of more than 128 the two halves' sums. It is the order in which numpy adds up what lies side by side."""
    count = values.shape[-1]
    if count > 128:
        return block_sum(values[..., : count // 2]) + block_sum(values[..., count // 2 :])
    total = values[..., :8]
    for start in range(8, count, 8):
        total = total + values[..., start : start + 8]
    pairs = total[..., 0::2] + total[..., 1::2]
    return (pairs[..., 0] + pairs[..., 1]) + (pairs[..., 2] + pairs[..., 3])


def _round(blocks: Floats, grid: Grid, scale: Floats, zero: Floats | None) -> Floats:
    """Codes nearest to ``blocks`` as float32, with ggml's rounding of ties where it has one."""
    inverse = np.float32(1) / scale
    inverse = np.where(np.isfinite(inverse), inverse, np.float32(0))[..., None]  # no step: every code is the zero's
    if grid.zero is Zero.OFFSET and zero is not None:
        position = (blocks - zero[..., None]) * inverse
    else:
        position = blocks * inverse
    if grid.zero is Zero.NONE and not grid.centre:
        rounded = np.copysign(np.floor(np.abs(position) + np.float32(0.5)), position)
    else:
        rounded = np.floor(position + np.float32(grid.centre) + np.float32(0.5))
        if grid.zero is Zero.CODE and zero is not None:
            rounded = rounded + zero[..., None].round()
    codes: Floats = np.clip(rounded, grid.lo, grid.hi).astype(np.float32)
    return codes


def _nearest(blocks: Floats, grid: Grid, scale: Floats, zero: Floats | None) -> QTensor:
    codes = _round(blocks, grid, scale, zero).astype(np.int8)
    return QTensor(grid, codes.reshape(len(blocks), -1), scale, zero)


def _choose(better: NDArray[np.bool_], new: QTensor, old: QTensor) -> QTensor:
    rows, count = better.shape
    wide = np.broadcast_to(better[..., None], (rows, count, new.grid.block)).reshape(rows, -1)
    zero = None if old.zero is None else np.where(better, new.zero, old.zero)
    return QTensor(new.grid, np.where(wide, new.codes, old.codes), np.where(better, new.scale, old.scale), zero)


def _storable(scale: Floats, blocks: Floats) -> Floats:
    half: Floats = to_half(scale)
    if not np.isfinite(half).all():
        raise Refused(
            f"a block of weights as large as {float(np.abs(blocks).max()):.3g} needs a scale beyond float16",
            "the checkpoint is damaged, or its weights must be rescaled first",
        )
    return half


def _storable_zero(zero: Floats, grid: Grid, scale: Floats) -> Floats:
    if grid.zero is Zero.OFFSET:
        return _storable(zero, zero)
    return np.clip(zero.round(), grid.lo, grid.hi).astype(np.float32)
