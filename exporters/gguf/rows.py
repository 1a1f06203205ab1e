"""A tensor in a GGUF file by rows: where some of them lie, what they are, and their bytes after a change."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.parts import Parts, check
from edgeqaf.runs import Run, whole
from exporters.gguf.blocks import pack, unpack
from exporters.gguf.container import TensorInfo
from exporters.gguf.floats import widen
from exporters.gguf.layouts import LAYOUTS
from exporters.gguf.numbers import AGAIN
from exporters.gguf.places import Place
from exporters.gguf.reader import Contents

Bytes = NDArray[np.uint8]
Edit = tuple[int, bytes | memoryview]  # offset in the file, new bytes


@dataclass(frozen=True)
class InFile:
    """One tensor of a file. grid: None for floats."""

    contents: Contents
    info: TensorInfo
    place: Place
    grid: Grid | None

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"{self.contents.path}: {self.info.name}"

    def read(self, start: int, stop: int) -> Run:
        """Logical rows [start, stop), checked; of a vector, those elements. With the last, what pads the tensor is."""
        if stop == self.info.shape[0]:
            self.contents.check_padding(self.info)
        span = self.span(start, stop)
        return span.read(self.contents.seen.read(span.offset, span.size))

    def whole(self) -> Tensor:
        """All of it."""
        rows, shape = self.place.shape[0], self.place.shape
        if self.grid is None:
            floats = self.read(0, rows)
            assert isinstance(floats, np.ndarray)
            return floats
        if len(shape) != 2:
            raise Refused(f"{self.name} is a quantized tensor of shape {list(shape)}", AGAIN)
        return whole(self.read, self.grid, (shape[0], shape[1]))

    def on_grid(self) -> Grid:
        """The grid of a tensor that has one."""
        assert self.grid is not None
        return self.grid

    def span(self, start: int, stop: int) -> "Span":
        """Where logical rows [start, stop) are."""
        each = self.info.size // self.info.shape[0]
        offset = self.contents.start + self.info.offset
        if self._places is None:
            return Span(self, offset + start * each, (stop - start) * each, None)
        places = self._places[start:stop]
        first, last = int(places.min()), int(places.max()) + 1
        return Span(self, offset + first * each, (last - first) * each, places - first)

    @cached_property
    def _places(self) -> NDArray[np.int64] | None:
        """The row of the file that holds each logical row; None where they are the same."""
        order = self.place.rows
        return None if order is None else np.argsort(order)

    def rows_in(self, own: Bytes) -> Run:
        """The rows that their own bytes hold, in logical order, by their parts if on a grid; Refused or GridError."""
        shape = (own.size * self.info.shape[0] // self.info.size, *self.info.shape[1:])
        if self.grid is None:
            return self.place.unshifted(widen(own, self.info.type, shape, self.name))
        if len(shape) != 2:
            raise Refused(f"{self.name} is a quantized tensor of shape {list(self.info.shape)}", AGAIN)
        return check(self.grid, unpack(own, self.grid, (shape[0], shape[1])), self.name)


@dataclass(frozen=True)
class Span:
    """Some logical rows in the file: within the ``size`` bytes from ``offset`` on.

    within: which rows of those bytes they are, in logical order, as rows of a head are interleaved in some files; None
    where they follow each other as in the tensor.
    """

    tensor: InFile
    offset: int
    size: int
    within: NDArray[np.int64] | None

    def read(self, raw: bytes | Bytes) -> Run:
        """The rows, those on a grid by their parts; raises Refused or GridError where the bytes hold none."""
        return self.tensor.rows_in(self._own(raw).reshape(-1))

    def edits(self, raw: bytes, rows: Parts) -> list[Edit]:
        """(offset, bytes) of what replaces the rows by others, and touches nothing else.

        Raises Refused where the file writes its integers in other bytes than it will get back.
        """
        if not LAYOUTS[self.tensor.info.type].bijective and (self._packed(self._parts(raw)) != self._own(raw)).any():
            raise Refused(
                f"{self.tensor.name} writes its integers in bytes that no exporter makes", "import and export it once"
            )
        new = self._packed(rows)
        if self.within is None:
            return [(self.offset, new.data.cast("B"))]
        order = np.argsort(self.within)
        new, places = new[order], self.within[order]
        cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(order)]
        return [(self.offset + int(places[a]) * new.shape[1], new[a:b].data.cast("B")) for a, b in pairwise(cuts)]

    def _packed(self, rows: Parts) -> Bytes:
        """uint8 [rows, bytes of a row]."""
        return pack(self.tensor.on_grid(), rows).view(np.uint8)

    def _own(self, raw: bytes | Bytes) -> Bytes:
        """The rows' own bytes, in logical order: uint8 [rows, bytes of a row]."""
        info = self.tensor.info
        own: Bytes = np.frombuffer(raw, np.uint8).reshape(-1, info.size // info.shape[0])
        return own if self.within is None else own[self.within]

    def _parts(self, raw: bytes) -> Parts:
        rows = self.read(raw)
        assert isinstance(rows, Mapping)
        return rows
