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

from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, Supers

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


def join(grid: Grid, parts: Mapping[str, NDArray[Any]]) -> QTensor:
    """The tensor of these parts, unchecked: the inverse of `split`."""
    wide = {name: array if array.dtype == np.int8 else array.astype(np.float32) for name, array in parts.items()}
    codes = wide.pop(CODES)
    if grid.levels is not None:
        supers = Supers(**wide)
        return QTensor(grid, codes, supers.scale, supers.zero, supers)
    zero = wide.get("zero")
    return QTensor(grid, codes, wide["scale"], None if zero is None else zero.astype(np.float32))
