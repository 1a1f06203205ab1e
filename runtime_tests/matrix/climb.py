"""The ladder on every model, by way of the store, and the matrix that comes of it."""

import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import psutil

from edgeqaf import __version__, witness
from edgeqaf.console import Advance
from edgeqaf.dist import Dist
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.report import Check, VerificationReport
from runtime_tests import verify
from runtime_tests.golden.isa import machine
from runtime_tests.job import Job, Outcome, subject
from runtime_tests.matrix.cells import Cell, Column, Finding, Matrix, Row, lettered
from runtime_tests.matrix.plan import Plan, jobs, plan
from runtime_tests.matrix.store import Store, climbed


class Climber:
    """Answers jobs out of the store or anew, tells of each new one, and remembers whose each check is.

    logits: digest of each job's, by its name; owners: the name of the job that a check is of.
    expected: how many new ones there will be; more, where one that is kept turns out to be spoilt.
    """

    def __init__(self, store: Store, advance: Advance, expected: int) -> None:
        self._store, self._advance, self._expected = store, advance, expected
        self._lock = threading.Lock()
        self.logits: dict[str, str] = {}
        self.owners: dict[Check, str] = {}
        self.new = self.kept = 0

    def __call__(self, job: Job) -> Outcome:
        found, new = climbed(self._store, job)
        with self._lock:
            self.logits[subject(job)] = found.outcome.digest
            self.owners |= dict.fromkeys(found.outcome.checks, subject(job))
            self.new, self.kept = self.new + new, self.kept + (not new)
            if new:
                self._advance(min(self.new, self._expected), f"{subject(job)}, {found.seconds:.0f} s")
        return found.outcome


def missing(dists: Sequence[Dist], names: Sequence[str], options: RuntimeOptions, store: Store) -> int:
    """How many climbs are not kept."""
    return sum(not store.has(job) for dist in dists for job in jobs(dist, names, options))


def climb(
    dists: Sequence[Dist], names: Sequence[str], options: RuntimeOptions, climber: Climber
) -> tuple[Matrix, list[VerificationReport]]:
    """Every cell, and the report of each folder; in a cell a folder goes by its label, wherever it lies."""
    asked = plan(dists, names, options)
    found: dict[tuple[Row | None, Column], list[Finding]] = {}
    reports = []
    for dist in dists:
        climber.logits.clear()
        climber.owners.clear()
        report = verify.verify(dist, names, options, lambda done, note="": None, climb=climber)
        label, column = asked.labels[dist.folder], asked.folders[dist.folder]
        for check in report.checks:
            told = replace(check, detail=check.detail.replace(str(dist.folder.resolve()), label))
            name = climber.owners.get(check, check.subject)
            row = None if check.rung == "R0" else row_of(name, asked)
            found.setdefault((row, column), []).append(Finding(told, label, climber.logits.get(name, "")))
        reports.append(report)
    return _matrix(asked, found, options), reports


def row_of(name: str, asked: Plan) -> Row:
    """That of a job by its name, or the first of the runtime that a check is about as a whole."""
    if name in asked.subjects:
        return asked.subjects[name]
    runtime, *_, format = name.split()
    return next(row for own, row in asked.subjects.items() if (own.split()[0], own.split()[-1]) == (runtime, format))


def _matrix(asked: Plan, found: Mapping[tuple[Row | None, Column], list[Finding]], options: RuntimeOptions) -> Matrix:
    cells: dict[tuple[Row, Column], Cell] = {}
    for column in asked.columns:
        own = lettered(Cell(tuple(found.get((row, column), ()))) for row in asked.rows)
        cells |= {(row, column): cell for row, cell in zip(asked.rows, own, strict=True)}
    files = {column: Cell(tuple(found.get((None, column), ()))) for column in asked.columns}
    return Matrix(asked.rows, asked.columns, files, cells, _about(options))


def _about(options: RuntimeOptions) -> dict[str, str]:
    """The circumstances, for people."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{witness.processor()}, {psutil.cpu_count()} logical cores, {memory:.0f} GiB",
        "instruction set": machine(),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "edgeqaf": __version__,
        "threads": str(options.threads),
    }
