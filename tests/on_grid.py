"""Float weights put on any grid that GGUF carries, two-level ones included, which no quantizer of ours chooses."""

import numpy as np

from edgeqaf.grid import Grid
from edgeqaf.qtensor import QTensor, Supers, check
from edgeqaf.quantizers.absmax import quantize


def on_grid(weights: np.ndarray, grid: Grid) -> QTensor:
    """float32 [out, in] -> codes nearest under plain scales."""
    if grid.levels is None:
        return quantize(weights, grid)
    blocks = weights.reshape(len(weights), -1, grid.block)
    low = np.minimum(blocks.min(-1), 0) if grid.levels.zero else np.zeros(blocks.shape[:2], np.float32)
    reach = (blocks.max(-1) - low) / grid.hi if grid.levels.zero else np.abs(blocks).max(-1) / grid.centre
    minima = level(-low, grid.levels.zero[1], grid) if grid.levels.zero else ()
    supers = Supers(*level(reach, grid.levels.scale[1], grid), *minima)
    scale, zero = supers.scale[..., None], 0 if supers.zero is None else supers.zero[..., None]
    codes = np.rint(np.divide(blocks - zero, scale, where=scale != 0, out=np.zeros_like(blocks))) + grid.centre
    codes = codes.clip(grid.lo, grid.hi).astype(np.int8).reshape(weights.shape)
    return check(QTensor(grid, codes, supers.scale, supers.zero, supers))


def level(values: np.ndarray, most: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """float32 [out, in / block] >= 0 as float16 per super-block times integers up to ``most``."""
    wide = values.reshape(len(values), -1, grid.unit // grid.block)
    d = (wide.max(-1) / most).astype(np.float16).astype(np.float32)
    each = d[..., None]
    integers = np.rint(np.divide(wide, each, where=each != 0, out=np.zeros_like(wide))).clip(0, most)
    return d, integers.astype(np.int8).reshape(values.shape)
