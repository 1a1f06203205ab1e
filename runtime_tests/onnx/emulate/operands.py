"""A quantized matrix as the loops take it: decoded, or as integers, in tiles of outputs side by side."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.parts import join, split
from edgeqaf.qtensor import QTensor, decode
from runtime_tests.loops import TILE
from runtime_tests.onnx.emulate import offsets


class Matrix:
    """Some outputs of a quantized matrix, or all.

    q:  these outputs.
    at: their numbers in the whole matrix, rising; None for all.
    """

    def __init__(self, q: QTensor, at: NDArray[np.int64] | None = None) -> None:
        self.q, self.at = q, np.arange(len(q.codes)) if at is None else at
        self._strips: dict[tuple[int, int], Matrix] = {}

    def strip(self, first: int, last: int) -> "Matrix":
        """Those with numbers ``first:last``."""
        a, b = np.searchsorted(self.at, (first, last))
        if (a, b) == (0, len(self.at)):
            return self
        if (a, b) not in self._strips:
            part = join(self.q.grid, {name: values[a:b] for name, values in split(self.q).items()})
            self._strips[a, b] = Matrix(part, self.at[a:b])
        return self._strips[a, b]

    @cached_property
    def weights(self) -> Any:
        """Decoded, as the first term of a grid with a float zero: float32 [tiles, in, TILE]."""
        if self.q.grid.zero is not Zero.OFFSET:
            return _tiles(decode(self.q))
        blocks = self.q.codes.reshape(*self.q.scale.shape, -1) - self._point[..., None]
        return _tiles((blocks * self.q.scale[..., None]).reshape(self.q.shape))

    @cached_property
    def terms(self) -> Any:
        """Of the second term: float32 [tiles, in / block, TILE]."""
        return _tiles(offsets.terms(self.q))

    @cached_property
    def codes(self) -> Any:
        """Unsigned, codes of 8 bits plus 128: int16 [tiles, in, TILE]."""
        return _tiles(self.q.codes.astype(np.int16) - np.int16(min(self.q.grid.lo, 0)))

    @cached_property
    def scale(self) -> Any:
        """float32 [tiles, in / block, TILE]."""
        return _tiles(self.q.scale)

    @cached_property
    def points(self) -> Any:
        """``-(scale * zero point)`` of the unsigned codes: float32 [tiles, in / block, TILE]."""
        return _tiles(-(self.q.scale * (self._point - np.float32(min(self.q.grid.lo, 0)))))

    @cached_property
    def centred(self) -> Any:
        """Codes less their zero points: int16 [tiles, in, TILE]."""
        blocks = self.q.codes.reshape(*self.q.scale.shape, -1) - self._point[..., None]
        return _tiles(blocks.reshape(self.q.shape).astype(np.int16))

    @cached_property
    def halved(self) -> Any:
        """Codes less the middle of their range, 8 of four bits: int16 [tiles, in, TILE]."""
        return self.codes - np.int16(self._half)

    @cached_property
    def halved_points(self) -> Any:
        """`points` of these."""
        return _tiles(-(self.q.scale * (self._point - np.float32(min(self.q.grid.lo, 0) + self._half))))

    @cached_property
    def zeros(self) -> Any:
        """In place of `points` where codes are centred."""
        return np.zeros_like(self.scale)

    @property
    def _half(self) -> int:
        return 1 << max(self.q.grid.bits, 4) - 1

    @property
    def _point(self) -> Floats:
        """Zero points: float32 [out, in / block]."""
        grid = self.q.grid
        point = {Zero.NONE: grid.centre, Zero.CODE: self.q.zero, Zero.OFFSET: offsets.middle(self.q)}[grid.zero]
        return np.broadcast_to(np.asarray(point, np.float32), self.q.scale.shape)


def untiled(y: Any, out: int) -> Floats:
    """[tiles, m, TILE] -> [m, out]."""
    return np.ascontiguousarray(y.swapaxes(0, 1).reshape(y.shape[1], -1)[:, :out])


def _tiles(x: Any) -> Any:
    """[out, ...] -> [tiles, ..., TILE], contiguous; the last tile is filled up with zeros."""
    count = -(-len(x) // TILE)
    filled = np.zeros((count * TILE, *x.shape[1:]), x.dtype)
    filled[: len(x)] = x
    return np.ascontiguousarray(filled.reshape(count, TILE, -1).swapaxes(1, 2))
