"""Tensors by runs of rows: a pass over a model holds a piece that a cache holds, whatever the size of a tensor.

That bounds memory, and it is faster than whole tensors: memory that is new for every tensor costs more than what
is done with it.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, islice
from math import prod
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from edgeqaf import plugins
from edgeqaf.console import progress
from edgeqaf.digest import FLOAT32, Floats, Tensor, TensorDigest
from edgeqaf.grid import Grid
from edgeqaf.parts import Parts, dtypes, join, shapes, split
from edgeqaf.qtensor import QTensor, check

Made = TypeVar("Made")
RUN = 2**21  # weights of a run
# glibc gives memory back to the system, to be zeroed again, from 128 KB on, until it has seen a larger piece
# freed (mallopt(3), M_MMAP_THRESHOLD); numpy is several times as fast on runs whose memory stays.
np.empty(2**25 - 2**13, np.uint8)
Outline = Mapping[str, tuple[str, tuple[int, ...]]]  # `edgeqaf.checkpoint.QModel.outline`
Run = Parts | Floats  # some rows of a tensor on a grid, by their parts, or of one of floats
Rows = Callable[[int, int], Run]  # (start, stop) -> those rows of a tensor; of a vector, those elements


@runtime_checkable
class ByRows(Protocol):
    """Tensors that can be had by rows."""

    def rows(self, name: str) -> Rows:
        """The tensor ``name``, to be read by rows."""


@runtime_checkable
class Outlined(Protocol):
    """Tensors that know their grids and shapes before they are read."""

    def outline(self) -> Outline:
        """See `edgeqaf.checkpoint.QModel.outline`."""


def kind_of(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """Grid, or "float32", and shape of a tensor in memory."""
    return tensor.grid.name if isinstance(tensor, QTensor) else FLOAT32, tuple(map(int, tensor.shape))


def rows_of(tensors: Mapping[str, Tensor], name: str) -> Rows:
    """One of some tensors by rows; where they cannot be had so, it is read as a whole, now."""
    return tensors.rows(name) if isinstance(tensors, ByRows) else rows_in(tensors[name], name)


def rows_in(tensor: Tensor, name: str) -> Rows:
    """The rows of a tensor in memory, nothing of it copied; a number is one row. GridError for one off its grid."""
    if not isinstance(tensor, QTensor):
        return lambda start, stop: np.atleast_1d(tensor)[start:stop]
    parts = split(check(tensor, name))
    return lambda start, stop: {part: array[start:stop] for part, array in parts.items()}


def whole(rows: Rows, grid: Grid, shape: tuple[int, int]) -> QTensor:
    """All of a tensor [out, in] on a grid, put together by runs."""
    types = dtypes(grid)
    parts = {part: np.empty(size, types[part]) for part, size in shapes(grid, shape).items()}
    for start, stop in cuts(shape):
        run = rows(start, stop)
        assert isinstance(run, Mapping)
        for part, array in run.items():
            parts[part][start:stop] = array
    return join(grid, parts)


def cuts(shape: tuple[int, ...], unit: int = 1, most: int | None = None) -> Iterator[tuple[int, int]]:
    """[start, stop) of the rows of each run of a tensor, by multiples of ``unit`` rows; of the elements of a vector.

    most: weights of a run that has more than a unit; `RUN` unless it is said.
    """
    shape = shape or (1,)
    each = max(1, (most or RUN) // max(prod(shape[1:]), 1) // unit) * unit
    return ((start, min(start + each, shape[0])) for start in range(0, shape[0], each))


def ahead(make: Callable[[int, int], Made], runs: Iterable[tuple[int, int]]) -> Iterator[Made]:
    """``make(start, stop)`` of every run, in order; another thread makes the next while the caller takes one.

    One thread: two that compute would wait for each other at the interpreter's lock, between numpy's short calls.
    """
    remaining = iter(runs)
    first = list(islice(remaining, 2))
    made = (make(*run) for run in chain(first, remaining))
    yield from made if len(first) < 2 else beside(made, 2)


def beside(items: Iterable[Made], most: int = 1) -> Iterator[Made]:
    """Items in order; another thread makes the next ones, ``most`` of them at most, while the caller takes one."""
    remaining = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(lambda: list(islice(remaining, 1))) for _ in range(most))
        while made := waiting.popleft().result():
            waiting.append(thread.submit(lambda: list(islice(remaining, 1))))
            yield from made


def digests(rows: Callable[[str], Rows], outline: Outline, title: str = "") -> Iterator[tuple[str, str]]:
    """(name, digest) of every tensor, sorted, as many at a time as there are processors.

    rows: the tensor of a name. title: of a progress bar, where there should be one.
    """
    names = sorted(outline)
    sizes = {name: prod(shape) * (4 if grid == FLOAT32 else 1) for name, (grid, shape) in outline.items()}
    done = 0

    def digest(name: str) -> str:
        grid, shape = outline[name]
        kind = None if grid == FLOAT32 else plugins.find("grids", grid)
        found, read = TensorDigest(name, shape, kind), rows(name)
        for start, stop in cuts(shape):
            found.update(read(start, stop))
        return found.hex()

    bar = progress(title, sum(sizes.values()), "B") if title else nullcontext()
    with ThreadPoolExecutor(threads()) as pool, bar as advance:
        for name, found in zip(names, pool.map(digest, names), strict=True):
            done += sizes[name]
            if advance:
                advance(done, name)
            yield name, found


def threads() -> int:
    """How many threads to read and hash with: the processors that this process may use, eight at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)
