"""Putting a patch into a model file, in place, and taking it out.

First every tensor of the file is read: what it is now and what it will be are hashed, and both Merkle roots must be the
ones that the patch names. Only then the first byte is written. Runs of rows are changed in order, some at a step of
the journal (`edgeqaf.patch.journal`), which records the range of runs that hold the patch: putting it in lets the
range grow at its end and then at its beginning, taking it out lets it shrink from its beginning. So interrupted
work of either kind goes on in either direction.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Protocol

from edgeqaf import plugins
from edgeqaf.console import progress
from edgeqaf.digest import FLOAT32, Tensor, TensorDigest, merkle_root
from edgeqaf.errors import Refused
from edgeqaf.parts import Parts, on_grid
from edgeqaf.patch.file import Patch, changed, runs
from edgeqaf.patch.journal import Edit, Journal
from edgeqaf.runs import threads

STEP = 2**22  # bytes of the file that a step changes at least
AHEAD = 2  # steps that are computed while one is written


class Rows(Protocol):
    """Some rows of a tensor, in a file: the ``size`` bytes from ``offset`` on hold them."""

    offset: int
    size: int

    def read(self, raw: bytes) -> Parts | Tensor:
        """The rows, those on a grid by their parts, from those bytes."""

    def edits(self, raw: bytes, rows: Parts) -> list[Edit]:
        """What replaces the rows by others, and touches nothing else."""


class Editable(Protocol):
    """A model file by runs of rows."""

    def outline(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Logical name -> (grid, or "float32", and shape)."""

    def locate(self, name: str, start: int, stop: int) -> Rows:
        """Where logical rows [start, stop) of a tensor are."""


@dataclass(frozen=True)
class Run:
    """A run of rows that a patch changes. index: among all; of: among the tensor's; size: its bytes in the file."""

    index: int
    name: str
    start: int
    stop: int
    of: int
    size: int


@dataclass(frozen=True)
class State:
    """How a file stands to a patch: "applied", "not applied", "interrupted", or "another" model's.

    before, after: what its roots are without and with the patch. differing: tensors that are not those of the patch.
    """

    name: str
    before: str
    after: str
    differing: Sequence[str] = ()


class Target:
    """A GGUF file open for one patch; a context manager. writable: whether to change it.

    Raises Refused for a file that another patch was being put into, or that another process is changing.
    """

    def __init__(self, path: Path, patch: Patch, *, writable: bool = True) -> None:
        self.path, self._patch = path, patch
        self._journal = Journal(path, writable=writable)
        try:
            self._file: Editable = plugins.find("exporters", "gguf").edit(path, self._journal.first)
            self._outline = self._file.outline()
            self._require_fit()
            self._runs = list(self._all_runs())
            self._first, self._last = self._range()
        except BaseException:
            self._journal.__exit__(None, None, None)
            raise

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *ended: Any) -> None:
        self._journal.__exit__(*ended)

    def check(self) -> State:
        """Read all of the file: what it is, with and without the patch."""
        sizes = {name: prod(shape) for name, (_, shape) in self._outline.items()}
        names = sorted(sizes, key=lambda name: sizes[name], reverse=True)
        done, digests = 0, {}
        with ThreadPoolExecutor(threads()) as pool, progress("check", sum(sizes.values()), "B") as advance:
            for name, digests[name] in zip(names, pool.map(self._digests, names), strict=True):
                done += sizes[name]
                advance(done, name)
        before, after = (merkle_root({name: pair[side] for name, pair in digests.items()}) for side in (0, 1))
        wrong = [n for n, e in self._patch.tensors.items() if digests[n] != (e["before"], e["after"])]
        if wrong or (before, after) != (self._patch.before, self._patch.after):
            return State("another", before, after, wrong)
        whole = {(0, 0): "not applied", (0, len(self._runs)): "applied"}
        cut = self._journal.state is not None
        return State("interrupted" if cut else whole[self._first, self._last], before, after)

    def move(self, *, put: bool) -> None:
        """Put the patch in, or take it out; a kill at any time leaves work that either can go on with."""
        steps = list(self._steps(put))
        with ThreadPoolExecutor(threads()) as pool, progress("patch" if put else "revert", len(steps)) as advance:
            started = ([pool.submit(self._edits, run, put) for run in some] for some, _ in steps)
            ahead = deque(islice(started, AHEAD))
            for done, (_, then) in enumerate(steps, 1):
                now = ahead.popleft()
                ahead.extend(islice(started, 1))
                state = self._said((self._first, self._last))
                self._journal.step(state, self._said(then), [edit for future in now for edit in future.result()])
                self._first, self._last = then
                advance(done)
        self._journal.finish()

    def _steps(self, put: bool) -> Iterator[tuple[list[Run], tuple[int, int]]]:
        """(runs to change, range of runs that hold the patch then) of each step."""
        first, last = self._first, self._last
        while (last < len(self._runs) or first > 0) if put else first < last:
            some: list[Run] = []
            while sum(run.size for run in some) < STEP:
                if put and last < len(self._runs):
                    some.append(self._runs[last])
                    last += 1
                elif put and first > 0:
                    first -= 1
                    some.append(self._runs[first])
                elif not put and first < last:
                    some.append(self._runs[first])
                    first += 1
                else:
                    break
            yield some, (first, last)

    def _edits(self, run: Run, put: bool) -> list[Edit]:
        rows = self._file.locate(run.name, run.start, run.stop)
        raw = self._journal.read(rows.offset, rows.size)
        now = rows.read(raw)
        assert isinstance(now, Mapping)
        return rows.edits(raw, changed(now, self._patch.differences(run.name, run.of), times=1 if put else -1))

    def _digests(self, name: str) -> tuple[str, str]:
        """Digests of a tensor without and with the patch; none, "", where that leaves its grid."""
        grid, shape = self._outline[name]
        found = None if grid == FLOAT32 else plugins.find("grids", grid)
        digests = TensorDigest(name, shape, found), TensorDigest(name, shape, found)
        fits = [True, True]
        first = next((run.index for run in self._runs if run.name == name), None)
        for k, (start, stop) in enumerate(runs(shape)):
            rows = self._file.locate(name, start, stop)
            now = rows.read(self._journal.read(rows.offset, rows.size))
            there = first is not None and self._first <= first + k < self._last
            digests[there].update(now)
            if first is not None and found is not None and isinstance(now, Mapping):
                other = changed(now, self._patch.differences(name, k), times=-1 if there else 1)
                digests[not there].update(other)
                fits[not there] &= on_grid(found, other)
        before, after = (digest.hex() if fit else "" for digest, fit in zip(digests, fits, strict=True))
        return before, before if first is None else after

    def _range(self) -> tuple[int, int]:
        """The runs that hold the patch: as the journal says, else all or none, as the smallest tensor is."""
        state = self._journal.state
        if state is None:
            self._first, self._last = 0, 0
            least = min(self._patch.tensors, key=lambda name: prod(self._outline[name][1]), default="")
            there = bool(least) and self._digests(least)[0] == self._patch.tensors[least]["after"]
            return 0, len(self._runs) if there else 0
        if state.get("patch") != self._patch.digest:
            raise Refused(
                f"{self.path}: another patch ({str(state.get('name'))!r}) was being put in or taken out",
                "finish that first: edgeqaf patch apply or revert with it",
            )
        first, last = state["range"]
        return int(first), int(last)

    def _said(self, held: tuple[int, int]) -> dict[str, Any]:
        return {"patch": self._patch.digest, "name": self._patch.path.name, "range": held}

    def _all_runs(self) -> Iterator[Run]:
        index = 0
        for name in sorted(self._patch.tensors):
            for k, (start, stop) in enumerate(runs(self._outline[name][1])):
                yield Run(index, name, start, stop, k, self._file.locate(name, start, stop).size)
                index += 1

    def _require_fit(self) -> None:
        """Refuse a patch of tensors that the file does not have."""
        for name, entry in self._patch.tensors.items():
            grid, shape = self._outline.get(name, ("absent", ()))
            if (grid, list(shape)) != (entry["grid"], entry["shape"]):
                raise Refused(
                    f"{self.path}: {name} is {grid} {list(shape)}, in the patch {entry['grid']} {entry['shape']}",
                    "the patch is for another model",
                )
