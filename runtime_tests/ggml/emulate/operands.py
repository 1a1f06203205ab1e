"""A quantized matrix as the loops take it: the integers that its kernel multiplies, tiles of outputs side by side."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeqaf.qtensor import QTensor
from runtime_tests.loops import TILE


@dataclass(frozen=True)
class Operand:
    """Arrays ``[tiles, ..., TILE]``; the last tile is filled up with zeros.

    codes:       int8 [tiles, in, TILE], the centre taken off.
    scale, zero: float32 [tiles, in / block, TILE]; of a two-level grid `Supers.d` and `Supers.dmin`, a row to a
                 super-block. The scale twice where there is no zero.
    levels:      int8 [tiles, in / block, TILE] twice: `Supers.scales` and `Supers.mins`, the scales twice where there
                 are no minima; none on grids of one level.
    """

    codes: Any
    scale: Any
    zero: Any
    levels: tuple[Any, ...] = ()


def operand(q: QTensor) -> Operand:
    """``q`` in tiles."""
    codes = _tiles((q.codes - q.grid.centre).astype(np.int8))
    if q.supers is None:
        scale = _tiles(q.scale)
        return Operand(codes, scale, scale if q.zero is None else _tiles(q.zero))
    scale, scales = _tiles(q.supers.d), _tiles(q.supers.scales)
    if q.supers.dmin is None:
        return Operand(codes, scale, scale, (scales, scales))
    return Operand(codes, scale, _tiles(q.supers.dmin), (scales, _tiles(q.supers.mins)))


def _tiles(x: Any) -> Any:
    """[out, ...] -> [tiles, ..., TILE], contiguous."""
    count = -(-len(x) // TILE)
    filled = np.zeros((count * TILE, *x.shape[1:]), x.dtype)
    filled[: len(x)] = x
    return np.ascontiguousarray(filled.reshape(count, TILE, -1).swapaxes(1, 2))
