"""A QTensor at rest: named arrays in the types they are stored in.

============ ============================== ==========================================
part         type, shape                    of
============ ============================== ==========================================
codes        int8 [out, in]                 every grid
scale        float16 [out, in / block]      grids of one level
zero         float16, or int8 where it is   those with a zero
             an integer
d            float16 [out, in / super]      grids of two levels (`edgeqaf.qtensor.Supers`)
scales       int8 [out, in / block]
dmin, mins   likewise                       those with a zero
============ ============================== ==========================================

Digests, model folders and files hold these and nothing else. Nothing is rounded on the way, in either direction.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import qtensor
from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, Supers

Parts = Mapping[str, NDArray[Any]]

CODES = "codes"
NAMES = (CODES, "scale", "zero", "d", "scales", "dmin", "mins")


def dtypes(grid: Grid) -> dict[str, np.dtype[Any]]:
    """The parts of a tensor on ``grid`` and their little-endian types, in the order in which digests take them."""
    half: np.dtype[Any] = np.dtype("<f2")
    byte: np.dtype[Any] = np.dtype("i1")
    if grid.levels is not None:
        stored = {CODES: byte, "d": half, "scales": byte}
        return stored if grid.levels.zero is None else stored | {"dmin": half, "mins": byte}
    stored = {CODES: byte, "scale": half}
    return stored if grid.zero is Zero.NONE else stored | {"zero": byte if grid.zero is Zero.CODE else half}


def shapes(grid: Grid, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The shapes of the parts of a tensor [out, in] on ``grid``."""
    out, inputs = shape
    each = {CODES: 1, "d": grid.unit, "dmin": grid.unit}
    return {part: (out, inputs // each.get(part, grid.block)) for part in dtypes(grid)}


def split(q: QTensor) -> dict[str, NDArray[Any]]:
    """The parts of ``q``, a numpy QTensor at rest."""
    source = q if q.supers is None else q.supers
    types = dtypes(q.grid)
    return {CODES: q.codes.astype(types.pop(CODES), copy=False)} | {
        name: getattr(source, name).astype(dtype) for name, dtype in types.items()
    }


def join(grid: Grid, parts: Parts) -> QTensor:
    """The tensor of these parts, unchecked: the inverse of `split`."""
    wide = {name: array if array.dtype == np.int8 else array.astype(np.float32) for name, array in parts.items()}
    codes = wide.pop(CODES)
    if grid.levels is not None:
        supers = Supers(**wide)
        return QTensor(grid, codes, supers.scale, supers.zero, supers)
    zero = wide.get("zero")
    return QTensor(grid, codes, wide["scale"], None if zero is None else zero.astype(np.float32))


def check(grid: Grid, parts: Parts, name: str = "tensor") -> Parts:
    """`edgeqaf.qtensor.check` of the tensor of these parts, which are not widened for it unless one is amiss."""
    if not on_grid(grid, parts):
        qtensor.check(join(grid, parts), name)
    return parts


def on_grid(grid: Grid, parts: Parts) -> bool:
    """Whether every number is one of the grid's: integers within their span, float16 finite."""
    spans = {CODES: (grid.lo, grid.hi), "zero": (grid.lo, grid.hi)}
    if grid.levels is not None:
        spans |= {"scales": grid.levels.scale, "mins": grid.levels.zero or (0, 0)}
    return all(
        _finite(array) if array.dtype == np.float16 else spans[part][0] <= array.min() <= array.max() <= spans[part][1]
        for part, array in parts.items()
    )


def _finite(halves: NDArray[Any]) -> bool:
    """Whether no float16 value has all bits of its exponent set."""
    return not ((halves.view(np.uint16) & np.uint16(0x7C00)) == 0x7C00).any()
