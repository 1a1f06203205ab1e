"""Where a matrix's digits are in the data file, among those of the matrices that read the same input.

    GROUP.high   INT8    [in, out]                  the highest digit of matrices that read one input, side by side
    GROUP.low    INT8    [in, (digits - 1) * out]   the others, the lowest first
    GROUP.unit   FLOAT   [out]                      what the lowest counts

GROUP is the names of its matrices, joined by "+". Rows of a matrix are columns here, so a run of rows is a few bytes of
every line.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused
from edgeqaf.runs import Rows, Run, ahead, cuts
from exporters.onnx.exact import digits, measure
from exporters.onnx.linear import Kind
from exporters.onnx.opened import AGAIN, opened
from exporters.onnx.parts import Part
from exporters.onnx.strips import put, transpose_into

GROUP = "+"  # joins the names of matrices that one product multiplies by
HIGH, LOW, UNIT = ".high", ".low", ".unit"
RUN = 2**22  # weights of a run


def parts(names: Sequence[str], kinds: Mapping[str, Kind], count: int) -> list[Part]:
    """What a group takes in the data file, with so many digits."""
    group, out, inputs = GROUP.join(names), sum(kinds[name][0][0] for name in names), kinds[names[0]][0][1]
    lower = [Part(group + LOW, "INT8", (inputs, (count - 1) * out))] if count > 1 else []
    return [Part(group + HIGH, "INT8", (inputs, out)), *lower, Part(group + UNIT, "FLOAT", (out,))]


@dataclass(frozen=True)
class Columns:
    """One matrix.

    count:           its digits.
    total, first:    columns of its group for each digit, and the first that is its own.
    high, low, unit: offsets of the group's parts in the data file.
    """

    name: str
    kind: Kind
    count: int
    total: int
    first: int
    high: int
    low: int
    unit: int

    def write(self, handle: int, rows: Rows) -> int:
        """Write the digits and units of what ``rows`` gives; returns how many bytes."""
        shape = self.kind[0]

        def made(start: int, stop: int) -> tuple[int, NDArray[np.int8], NDArray[np.float32]]:
            return start, *self._of(rows(start, stop))

        for start, columns, units in ahead(made, cuts(shape, 32, RUN)):
            for i, line in enumerate(columns):
                for j, run in enumerate(line):
                    put(handle, run, self._at(i, j, start))
            put(handle, units, self.unit + 4 * (self.first + start))
        return self.count * shape[0] * shape[1] + 4 * shape[0]

    def check(self, path: Path, start: int, run: Run) -> None:
        """Refused if the data file holds other digits than those of rows [start, ...) of the matrix."""
        columns, units = self._of(run)
        found, held = np.empty_like(columns), np.empty_like(units)
        with opened(path) as file:
            for i, line in enumerate(found):
                for j, part in enumerate(line):
                    os.preadv(file.fileno(), [part.view(np.uint8).data], self._at(i, j, start))
            os.preadv(file.fileno(), [held.view(np.uint8).data], self.unit + 4 * (self.first + start))
        if not np.array_equal(held.view(np.uint32), units.view(np.uint32)):
            raise Refused(f"{self.name}: its digits count other units than its codes and scales do", AGAIN)
        if not np.array_equal(found, columns):
            i, j, row = (int(n[0]) for n in np.nonzero(found != columns))
            raise Refused(
                f"{self.name}[{start + row}, {i}]: digit {j} is {found[i, j, row]}, its code and scale make it "
                f"{columns[i, j, row]}",
                AGAIN,
            )

    def _of(self, run: Run) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Digits [in, count, rows] and units [rows] of some rows."""
        grid = self.kind[1]
        w = measure.values(run, grid)
        units = digits.units(w, self.count)
        columns = np.empty((w.shape[1], self.count, len(w)), np.int8)
        for j, digit in enumerate(digits.split(digits.integers(w, units), self.count)):
            transpose_into(columns[:, j], digit)
        return columns, units.astype("<f4")

    def _at(self, line: int, digit: int, row: int) -> int:
        lower = self.count - 1
        start = self.high + line * self.total if digit == lower else self.low + (line * lower + digit) * self.total
        return start + self.first + row


def columns(
    names: Sequence[str], kinds: Mapping[str, Kind], count: int, offsets: Mapping[str, int]
) -> dict[str, Columns]:
    """Each matrix of a group by its name."""
    group, total, first = GROUP.join(names), sum(kinds[name][0][0] for name in names), 0
    found = {}
    for name in names:
        at = offsets[group + HIGH], offsets.get(group + LOW, 0), offsets[group + UNIT]
        found[name] = Columns(name, kinds[name], count, total, first, *at)
        first += kinds[name][0][0]
    return found


def groups(dims: Mapping[str, tuple[int, ...]], kinds: Mapping[str, Kind]) -> dict[tuple[str, ...], int]:
    """How many digits each group has of which digits are declared, by its matrices; raises Refused for an unsound one.

    dims: of every initializer in the data file.
    """
    found: dict[tuple[str, ...], int] = {}
    for part in (name for name in dims if name.endswith(HIGH)):
        group = part.removesuffix(HIGH)
        names = tuple(group.split(GROUP))
        shapes = [kinds[name][0] for name in names if name in kinds]
        if len(set(names)) != len(names) or len(shapes) != len(names) or any(len(shape) != 2 for shape in shapes):
            raise Refused(f"{part}: not the digits of matrices that the file has", AGAIN)
        out, inputs, low = sum(shape[0] for shape in shapes), {shape[1] for shape in shapes}, dims.get(group + LOW)
        count = 1 if low is None else 1 + low[-1] // out if low else 0
        if len(inputs) != 1 or count not in range(1 if low is None else 2, digits.MOST_DIGITS + 1):
            raise Refused(
                f"{part} of {dims[part]} and {low} for matrices of {[list(shape) for shape in shapes]}", AGAIN
            )
        found[names] = count
    twice = [name for name, n in Counter(name for names in found for name in names).items() if n > 1]
    if twice:
        raise Refused(f"{twice[0]} has digits twice", AGAIN)
    return found
