"""What the kernels of `edgeqaf.kernels.searches` know of a grid: constants of their code, by which it is cached."""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeqaf.grid import Grid, Zero
from edgeqaf.rounding import MANY, TRIES, refits

STEPS = ("lanes.py", "scalars.py")


class Plan(NamedTuple):
    """A grid and a search, as the kernels take them: constants that their cache can be keyed by.

    sums: of so many terms at a time (`block_sum`). offset, stored: the form of the zero. signed: no code is the middle.
    half: centre and 1/2. side: what the largest weight is divided by. starts: candidates for each factor of the fan;
    tries: of all. steps: a sum of the files of their steps, as numba looks at a kernel's own only.
    """

    block: int
    sums: int
    offset: bool
    stored: bool
    signed: bool
    centre: np.float32
    half: np.float32
    lo: np.float32
    hi: np.float32
    side: np.float32
    starts: int
    again: int
    tries: int
    steps: int


def plan(grid: Grid, search: bool) -> Plan:
    """The constants of a grid, for the search or for the end-of-grid scale alone."""
    offset, stored = grid.zero is Zero.OFFSET, grid.zero is Zero.CODE
    starts = 2 if stored or (not offset and grid.hi - grid.lo + 1 < MANY) else 1
    centre, lo, hi, side = (
        np.float32(x) for x in (grid.centre, grid.lo, grid.hi, grid.lo - grid.centre if grid.centre else grid.hi)
    )
    return Plan(
        block=grid.block, sums=min(grid.block, 128), offset=offset, stored=stored,
        signed=not (grid.centre or offset or stored), centre=centre, half=centre + np.float32(0.5), lo=lo, hi=hi,
        side=side, starts=starts, again=refits(grid), tries=1 + starts * len(TRIES) if search else 1,
        steps=zlib.crc32(b"".join(Path(__file__).with_name(name).read_bytes() for name in STEPS)),
    )  # fmt: skip
