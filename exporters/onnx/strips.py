"""A tensor in the data file by runs of rows, though the file may hold rows as columns.

A run of rows is then a strip of columns: too few bytes of each line to be written, or read, one by one. So strips are
collected in a buffer of `STRIP` bytes, in the file's order, and go to their lines from there, some thousand bytes each.
Rows that lie together are written and read as they come.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.runs import Rows, Run, ahead, cuts
from exporters.onnx.coding import AGAIN, decode, encode, flat_packed, flat_unpacked
from exporters.onnx.opened import opened
from exporters.onnx.parts import Part

STRIP = 2**26
UNIT = 32  # rows of a run are multiples of it: eight bytes of four codes each
Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Where a tensor is in the data file. grid: None for floats; offsets: of its parts."""

    name: str
    shape: tuple[int, ...]
    grid: Grid | None
    stored: Sequence[Part]
    offsets: Mapping[str, int]

    def strips(self) -> list[tuple[int, int]]:
        """[start, stop) of the rows of each strip."""
        rows = self.shape[0]
        if any(part.loose for part in self.stored):
            return [(0, rows)]
        first = self.stored[0]
        most = STRIP * first.lanes // max(prod(self.shape[1:]), 1) if first.across else rows
        each = max(UNIT, most // UNIT * UNIT)
        return [(start, min(start + each, rows)) for start in range(0, rows, each)]


def write(handle: int, layout: Layout, rows: Rows) -> int:
    """Write the tensor that ``rows`` gives into the open data file; returns how many bytes."""
    grid = layout.grid

    def made(start: int, stop: int) -> tuple[int, list[Array]]:
        run = rows(start, stop)
        if grid is None:
            assert isinstance(run, np.ndarray)
            return start, [np.ascontiguousarray(run, "<f4")]
        assert isinstance(run, Mapping)
        return start, encode(layout.stored, grid, run)

    for first, last in layout.strips():
        held = {p.name: _strip(p, last - first) for p in layout.stored if p.across}
        within = ((first + a, first + b) for a, b in cuts((last - first, *layout.shape[1:]), UNIT))
        for start, arrays in ahead(made, within):
            for part, array in zip(layout.stored, arrays, strict=True):
                if part.across:
                    transpose_into(held[part.name][:, (start - first) // part.lanes :][:, : len(array)], array)
                else:
                    put(handle, array, layout.offsets[part.name] + start * _line(part))
        for part in layout.stored:
            if part.across:
                _put_strip(handle, layout, part, held[part.name], first // part.lanes)
    return sum(part.nbytes for part in layout.stored)


def transpose_into(target: Array, rows: Array) -> None:
    """``target[:] = rows.T``; bytes eight rows at a time, which is three times as fast."""
    whole = len(rows) // 8 * 8 if rows.itemsize == 1 else 0
    if whole:
        zipped = np.empty((whole // 8, rows.shape[1], 8), np.uint8)
        for i in range(8):
            zipped[:, :, i] = rows[i:whole:8]
        target[:, :whole].view(np.uint64)[:] = zipped.view(np.uint64)[:, :, 0].T
    target[:, whole:] = rows[whole:].T


def _line(part: Part) -> int:
    """Bytes of a row, or column, of the file."""
    return part.nbytes // part.shape[0]


def _strip(part: Part, rows: int) -> Array:
    """An empty strip of so many logical rows, in the file's order."""
    return np.empty((part.shape[0], rows // part.lanes), "<f4" if part.type == "FLOAT" else np.uint8)


def put(handle: int, array: Array, offset: int) -> None:
    """Write an array into the open data file."""
    data = array.reshape(-1).view(np.uint8).data
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done


def _put_strip(handle: int, layout: Layout, part: Part, strip: Array, column: int) -> None:
    offset = layout.offsets[part.name]
    if part.loose:
        assert layout.grid is not None
        put(handle, flat_packed(strip, layout.grid), offset)
    elif strip.nbytes == part.nbytes:
        put(handle, strip, offset)
    else:
        for i, line in enumerate(strip):
            put(handle, line, offset + i * _line(part) + column * strip.itemsize)


@dataclass
class InFolder:
    """One tensor of a data file, read by rows; the last strip is kept, as its other rows are asked for next."""

    path: Path
    layout: Layout
    _held: tuple[int, int, list[Array]] = field(default=(0, 0, []))

    def read(self, start: int, stop: int) -> Run:
        """Logical rows [start, stop), checked."""
        layout, grid = self.layout, self.layout.grid
        pieces = [max(first, start) for first, last in layout.strips() if first < stop and last > start]
        bounds = [*pieces, stop]
        some = [self._some(a, b) for a, b in pairwise(bounds)]
        arrays = [np.concatenate(each) if len(some) > 1 else each[0] for each in zip(*some, strict=True)]
        if grid is None:
            if not np.isfinite(arrays[0]).all():
                raise Refused(f"{layout.name} holds values that are not finite", AGAIN)
            return arrays[0].reshape(-1, *layout.shape[1:]) if len(layout.shape) > 1 else arrays[0].reshape(-1)
        lanes = layout.stored[0].lanes
        run = decode(layout.name, layout.stored, grid, arrays, layout.shape[1])
        skipped = start % lanes
        return {part: array[skipped : skipped + stop - start] for part, array in run.items()} if lanes > 1 else run

    def _some(self, start: int, stop: int) -> list[Array]:
        """Rows of one strip as the parts hold them, from a whole byte to a whole byte."""
        across = self.layout.stored[0].across
        if not across:
            with opened(self.path) as file:
                return [
                    self._get(file.fileno(), part, (stop - start) * _line(part), start * _line(part)).reshape(
                        stop - start, -1
                    )
                    for part in self.layout.stored
                ]
        first, _, held = self._strip_of(start)
        lanes = self.layout.stored[0].lanes
        a, b = start // lanes * lanes, -(-stop // lanes) * lanes
        return [
            _rows(array[:, (a - first) // part.lanes : (b - first) // part.lanes])
            for part, array in zip(self.layout.stored, held, strict=True)
        ]

    def _strip_of(self, row: int) -> tuple[int, int, list[Array]]:
        first, last, _ = self._held
        if not first <= row < last:
            first, last = next((a, b) for a, b in self.layout.strips() if a <= row < b)
            with opened(self.path) as file:
                held = [self._load(file.fileno(), part, first, last) for part in self.layout.stored]
            self._held = first, last, held
        return self._held

    def _load(self, handle: int, part: Part, first: int, last: int) -> Array:
        grid = self.layout.grid
        if part.loose:
            assert grid is not None
            return flat_unpacked(self._get(handle, part, part.nbytes, 0), grid, part)
        strip = _strip(part, last - first)
        if strip.nbytes == part.nbytes:
            return self._get(handle, part, part.nbytes, 0).view(strip.dtype).reshape(strip.shape)
        column = first // part.lanes * strip.itemsize
        for i, line in enumerate(strip):
            line[:] = self._get(handle, part, line.nbytes, i * _line(part) + column).view(strip.dtype)
        return strip

    def _get(self, handle: int, part: Part, size: int, within: int) -> Array:
        raw = np.empty(size, np.uint8)
        done = 0
        while done < size:
            got = os.preadv(handle, [raw.data[done:]], self.layout.offsets[part.name] + within + done)
            if got <= 0:
                raise Refused(f"{self.path} ends inside {part.name}", AGAIN)
            done += got
        return raw.view("<f4") if part.type == "FLOAT" else raw


def _rows(columns: Array) -> Array:
    """``columns.T``, its rows each together."""
    if columns.itemsize > 1:
        return np.ascontiguousarray(columns.T)
    rows = np.empty(columns.shape[::-1], np.uint8)
    for i in range(0, columns.shape[0], 256):  # within a cache
        rows[:, i : i + 256] = columns[i : i + 256].T
    return rows
