"""The tensors of a GGUF file by runs of logical rows: where they lie, what they are, and their bytes after a change."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.parts import Parts
from exporters.gguf.artifact import StoredTensors, read_rows
from exporters.gguf.blocks import pack_parts
from exporters.gguf.container import TensorInfo
from exporters.gguf.layouts import LAYOUTS
from exporters.gguf.places import Place

Edit = tuple[int, bytes | memoryview]  # offset in the file, new bytes


@dataclass(frozen=True)
class Rows:
    """Some logical rows in the file: within the ``size`` bytes from ``offset`` on.

    within: which rows of those bytes they are, in logical order; rows of a head are interleaved in some files.
    """

    offset: int
    size: int
    within: NDArray[np.int64]
    _info: TensorInfo
    _place: Place
    _grid: Grid | None

    def read(self, raw: bytes) -> Parts | Tensor:
        """The rows, those on a grid by their parts; raises Refused or GridError where the bytes hold none."""
        own = self._own(raw)
        info = replace(self._info, shape=(len(own), *self._info.shape[1:]))
        found = read_rows(own.reshape(-1), info, self._grid, info.name)
        return self._place.unshifted(found) if isinstance(found, np.ndarray) else found

    def edits(self, raw: bytes, rows: Parts) -> list[Edit]:
        """(offset, bytes) of what replaces the rows by others, and touches nothing else.

        Raises Refused where the file writes its integers in other bytes than it will get back.
        """
        if not LAYOUTS[self._info.type].bijective and (self._packed(self._parts(raw)) != self._own(raw)).any():
            raise Refused(
                f"{self._place.stored} writes its integers in bytes that no exporter makes", "import and export it once"
            )
        new = self._packed(rows)
        if self._straight:
            return [(self.offset, new.data.cast("B"))]
        order = np.argsort(self.within)
        new, places = new[order], self.within[order]
        cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(order)]
        return [(self.offset + int(places[a]) * new.shape[1], new[a:b].data.cast("B")) for a, b in pairwise(cuts)]

    def _packed(self, rows: Parts) -> NDArray[np.uint8]:
        """uint8 [rows, bytes of a row]."""
        assert self._grid is not None
        return pack_parts(self._grid, rows).view(np.uint8)

    @cached_property
    def _straight(self) -> bool:
        """Whether the rows follow each other in the file as they do in the tensor."""
        return np.array_equal(self.within, np.arange(len(self.within)))

    def _own(self, raw: bytes) -> NDArray[np.uint8]:
        """The rows' own bytes, in logical order: uint8 [rows, bytes of a row]."""
        own: NDArray[np.uint8] = np.frombuffer(raw, np.uint8).reshape(-1, self._info.size // self._info.shape[0])
        return own if self._straight else own[self.within]

    def _parts(self, raw: bytes) -> Parts:
        found = self.read(raw)
        assert isinstance(found, Mapping)
        return found


class StoredRows:
    """The tensors of a file by runs of rows; see `edgeqaf.patch.target.Editable`."""

    def __init__(self, stored: StoredTensors) -> None:
        self._stored = stored

    def outline(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Logical name -> (grid, or "float32", and shape)."""
        return self._stored.outline()

    def rows(self, name: str, start: int, stop: int) -> Rows:
        """Logical rows [start, stop) of a tensor; of a vector, its elements."""
        place = self._stored.places[name]
        contents = self._stored.contents
        info = contents.tensors[place.stored]
        each = info.size // info.shape[0]
        order = place.rows
        places = np.arange(start, stop) if order is None else np.argsort(order)[start:stop]
        first, last = int(places.min()), int(places.max()) + 1
        offset = contents.start + info.offset + first * each
        return Rows(offset, (last - first) * each, places - first, info, place, self._stored.grid(name))
