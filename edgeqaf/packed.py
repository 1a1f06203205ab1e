"""A QTensor as a training step holds it: codes packed, everything else as it is, read a tile of rows at a time.

A byte holds ``lanes`` codes of one block, ``block / lanes`` columns apart: byte j of a block of 32 holds
codes j (low bits) and j + 16 of a 4-bit grid. Lanes then unpack to runs of neighbours, which vector
units like; this is memory's layout only, files have their own (`edgeqaf.packing`).

A tile is `TILE` weights at most (on a GPU `GPU_TILE`), so a layer is never decoded as a whole, and what
autograd would keep of it is never kept. On a CPU its float32 weights fit the cache; on a GPU it fills the machine.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from edgeqaf.grid import Grid, Zero
from edgeqaf.kernels import accelerated
from edgeqaf.packing import WIDTHS
from edgeqaf.parts import Parts, join
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.runs import Rows, cuts

TILE, GPU_TILE = 2**21, 2**24


@dataclass(frozen=True)
class Packed:
    """codes: uint8 [out, in / lanes]; scale, zero: as `QTensor` has them, on the same device."""

    grid: Grid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.shape[0], self.scale.shape[1] * self.grid.block

    def rows(self, rows: slice) -> QTensor:
        """The QTensor of some rows, its codes int8."""
        zero = None if self.zero is None else self.zero[rows]
        return QTensor(self.grid, unpack(self.codes[rows], self.grid), self.scale[rows], zero)

    def whole(self) -> QTensor:
        """All rows."""
        return self.rows(slice(0, self.shape[0]))

    def tiles(self) -> Iterator[slice]:
        """Row ranges of at most `TILE` weights (one row at least), in order."""
        return tiles(*self.shape, self.device.type)


def tiles(out: int, inputs: int, device: str = "cpu") -> Iterator[slice]:
    """`Packed.tiles` of a matrix [out, in]."""
    rows = max(1, (TILE if device == "cpu" else GPU_TILE) // inputs)
    return (slice(start, min(start + rows, out)) for start in range(0, out, rows))


@accelerated
def weights(packed: Packed, rows: slice, dtype: torch.dtype) -> Tensor:
    """The weights of some rows, built in float32 and cast once: [rows, in] of ``dtype``."""
    decoded: Tensor = decode(packed.rows(rows))
    return decoded.to(dtype)


def packed(q: QTensor) -> Packed:
    """A numpy QTensor at rest, packed a run at a time; nothing of ``q`` is shared."""
    zero = q.zero
    return _packed(
        q.grid, q.shape,
        lambda a, b: QTensor(q.grid, q.codes[a:b], q.scale[a:b], None if zero is None else zero[a:b]),
    )  # fmt: skip


def packed_by_rows(rows: Rows, grid: Grid, shape: tuple[int, int]) -> Packed:
    """A tensor [out, in] that is had by rows, packed a run at a time: its codes never take a byte each."""
    return _packed(grid, shape, lambda start, stop: join(grid, cast(Parts, rows(start, stop))))


def _packed(grid: Grid, shape: tuple[int, int], some: Callable[[int, int], QTensor]) -> Packed:
    out, inputs = shape
    # On the CPU and in float32 even where transformers has made another device or type the default.
    codes = torch.empty(out, inputs // lanes(grid), dtype=torch.uint8, device="cpu")
    scale = torch.empty(out, inputs // grid.block, dtype=torch.float32, device="cpu")
    zero = None if grid.zero is Zero.NONE else torch.empty_like(scale)
    for start, stop in cuts(shape):
        q = some(start, stop)
        codes[start:stop] = pack(torch.from_numpy(np.ascontiguousarray(q.codes)), grid)
        scale[start:stop] = torch.from_numpy(np.ascontiguousarray(q.scale))
        if zero is not None:
            zero[start:stop] = torch.from_numpy(np.ascontiguousarray(q.zero))
    return Packed(grid, codes, scale, zero)


def lanes(grid: Grid) -> int:
    """Codes in a byte: 3-bit codes take the room of 4."""
    return 8 // WIDTHS[grid.bits]


def pack(codes: Tensor, grid: Grid) -> Tensor:
    """int8 codes [out, in] -> uint8 [out, in / lanes]; the inverse of `unpack`."""
    count = lanes(grid)
    if count == 1:
        return codes.view(torch.uint8)
    lane = codes.view(torch.uint8).view(len(codes), -1, count, grid.block // count)
    packed = lane[:, :, 0]
    for i in range(1, count):
        packed = torch.add(packed, lane[:, :, i], alpha=1 << (i * 8 // count))
    return packed.view(len(codes), -1)


def unpack(packed: Tensor, grid: Grid) -> Tensor:
    """uint8 [out, in / lanes] -> int8 codes [out, in]."""
    count = lanes(grid)
    if count == 1:
        return packed.view(torch.int8)
    width = 8 // count
    byte = packed.view(len(packed), -1, grid.block // count)
    lane = [(byte >> (i * width)) & (2**width - 1) for i in range(count - 1)]
    return torch.cat([*lane, byte >> (8 - width)], -1).view(torch.int8).view(len(packed), -1)
