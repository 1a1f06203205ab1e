"""The matrix as text on the terminal, as one self-contained HTML page, and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgeqaf.console import say, table
from edgeqaf.html import Tone
from edgeqaf.html.frame import RUNG_NAMES, SYMBOLS, fill
from edgeqaf.report import Check, Verdict
from runtime_tests.matrix.cells import ASKED, MARKS, Cell, Column, Finding, Matrix, State

TITLE = "edgeqaf matrix"
TEMPLATE = "matrix.html.j2"
NOTHING = "·"
LEGEND = (
    "marks of a cell: R1 weights, R2 kernels, R3 layers, R4 logits, S other settings; then a letter, for logits "
    "that other rows of the column have to the bit",
    f"= exact, ≈ bounded, ≠ different, ✕ refused, – absent, {NOTHING} not offered; two of one rung are two checks",
)


def marks(cell: Cell, widths: Mapping[str, int]) -> str:
    """A cell in characters: a group for each rung, ``widths`` wide, as one can have several; then its letter."""
    if cell.state is State.NOT_OFFERED:
        return ""
    groups = {rung: "".join(SYMBOLS[check.verdict] for check in cell.marks(rung)) or NOTHING for rung in MARKS}
    return " ".join([*(group.ljust(widths[rung]) for rung, group in groups.items()), cell.letter]).rstrip()


def show(matrix: Matrix) -> None:
    """Print the table, what it amounts to, and every failure."""
    last = ("", "")
    rows, widths = [], matrix.widths
    for row in matrix.rows:
        family, runtime = row.family if row.family != last[0] else "", row.runtime
        shown = runtime if (row.family, runtime) != last else ""
        cells = [marks(matrix.cells[row, column], widths) for column in matrix.columns]
        rows.append((family, shown, row.configuration or "as a whole", *cells))
        last = row.family, runtime
    table("Matrix", ("", "runtime", "configuration", *(c.label for c in matrix.columns)), rows)
    for line in LEGEND:
        say(line)
    totals = matrix.totals
    counts = [(f"{rung} {RUNG_NAMES[rung]}".strip(), *found.values()) for rung, found in matrix.rungs.items()]
    table("Marks", ("rung", *(v.value for v in Verdict)), counts)
    table("Compared", ("what", *(c.label for c in matrix.columns), "all"), _counts(matrix))
    say(f"{sentence(matrix)} {totals.differing:,} values differ where bits must be equal.")
    for finding in matrix.failures:
        say(f"{finding.folder}: {finding.check.rung} {finding.check.subject}: {finding.check.verdict.value}: "
            f"{finding.check.reason}")  # fmt: skip
    for reason, subjects in _absences(matrix).items():
        say(f"absent: {', '.join(subjects)}: {reason}")


def sentence(matrix: Matrix) -> str:
    """What the matrix amounts to."""
    states = ", ".join(f"{number:,} {state.value}" for state, number in matrix.states.items() if number)
    models, rows = len(matrix.columns), len(matrix.rows)
    them = "it" if models == 1 else "them"
    there = {
        rung: (found[Verdict.EXACT], sum(found.values()) - found[Verdict.ABSENT])
        for rung, found in matrix.rungs.items()
    }
    equal = [f"{RUNG_NAMES[rung]} in {there[rung][0]:,} of {there[rung][1]:,}" for rung in ASKED if rung in there]
    told = f" Of those that are there, bits are equal: {', '.join(equal)}." if equal else ""
    return f"{_of(models, 'model')} in {_of(rows, 'way')} of running {them}: {states}.{told}"


def tone(matrix: Matrix) -> Tone:
    """Proven only where something was compared, and nothing differs or was refused."""
    if matrix.failures:
        return Tone.FAILED
    return Tone.PROVEN if matrix.states[State.EXACT] + matrix.states[State.BOUNDED] else Tone.OPEN


def page(matrix: Matrix) -> str:
    """The matrix as HTML text."""
    return fill(
        TEMPLATE, {},
        matrix=matrix, title=TITLE, tone=tone(matrix), sentence=sentence(matrix), counts=_counts(matrix), rungs=MARKS,
        titled=_titled, widths=matrix.widths, tint=lambda letter: (sum(map(ord, letter)) - ord("A")) % 6,
        of_column=_of_column, nothing=NOTHING, states=State,
    )  # fmt: skip


def as_json(matrix: Matrix) -> dict[str, Any]:
    """The matrix as one JSON object."""
    totals = matrix.totals
    return {
        "kind": "matrix",
        "passed": tone(matrix) is Tone.PROVEN,
        "about": dict(matrix.about),
        "models": [asdict(column) for column in matrix.columns],
        "rungs": {rung: {v.value: n for v, n in found.items()} for rung, found in matrix.rungs.items()},
        "cells": {state.value: number for state, number in matrix.states.items()},
        "compared": dict(totals.compared), "differing": totals.differing, "bounded": totals.bounded,
        "files": [_finding(f) for column in matrix.columns for f in matrix.files[column].findings],
        "rows": [
            asdict(row) | {"cells": {c.label: _cell(matrix.cells[row, c]) for c in matrix.columns}}
            for row in matrix.rows
        ],
    }  # fmt: skip


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "state": cell.state.value, "reached": cell.reached, "exact_to": cell.exact_to, "letter": cell.letter,
        "logits": cell.logits, "checks": [_finding(f) for f in cell.findings],
    }  # fmt: skip


def _finding(finding: Finding) -> dict[str, Any]:
    return asdict(finding.check) | {"verdict": finding.check.verdict.value, "folder": finding.folder}


def _counts(matrix: Matrix) -> list[tuple[str, ...]]:
    """A line for each unit of what was compared, and two for what differs: of each column, and of all."""
    totals = [*(_of_column(matrix, c).totals for c in matrix.columns), matrix.totals]
    lines = [(f"{unit} compared", *(f"{t.compared.get(unit, 0):,}" for t in totals)) for unit in matrix.totals.compared]
    lines.append(("differing where bits must be equal", *(f"{t.differing:,}" for t in totals)))
    lines.append(("differing within a bound whose cause is named", *(f"{t.bounded:,}" for t in totals)))
    return lines


def _of_column(matrix: Matrix, column: Column) -> Matrix:
    cells = {(row, own): cell for (row, own), cell in matrix.cells.items() if own == column}
    return Matrix(matrix.rows, [column], {column: matrix.files[column]}, cells)


def _absences(matrix: Matrix) -> dict[str, list[str]]:
    """Reasons, and who is absent for each."""
    found: dict[str, list[str]] = {}
    for finding in matrix.findings:
        if finding.check.verdict is Verdict.ABSENT:
            subjects = found.setdefault(finding.check.detail, [])
            who = finding.check.subject.rpartition(" on ")[0] or finding.check.subject
            if who not in subjects:
                subjects.append(who)
    return found


def _titled(checks: Sequence[Check]) -> str:
    """What a mark says when it is pointed at."""
    return "; ".join(
        f"{c.rung} {RUNG_NAMES[c.rung]}: {c.verdict.value}" + (f", {c.compared:,} {c.unit}" if c.compared else "")
        for c in checks
    )


def _of(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
