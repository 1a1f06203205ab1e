"""What a person sees: tables, progress with an ETA on a terminal, plain lines elsewhere.

Human text goes to stdout; with ``--json`` stdout carries one JSON object and nothing else.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_state = {"quiet": False}


class _Console(Console):
    """rich's console, which would end the process by itself when whoever reads its output is gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


_console = _Console(highlight=False, soft_wrap=True)


class Advance(Protocol):
    """Report that ``done`` units are finished, with a short note such as the current loss."""

    def __call__(self, done: int, note: str = "") -> None: ...


def be_quiet(quiet: bool) -> None:
    """Silence human text (under ``--json``)."""
    _state["quiet"] = quiet


def say(text: str) -> None:
    """Print a line for people."""
    if not _state["quiet"]:
        _console.print(text, markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for people; numbers are aligned right."""
    if _state["quiet"]:
        return
    grid = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    cells = [[str(cell) for cell in row] for row in rows]
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*row)
    if not sys.stdout.isatty():
        _Console(width=140, highlight=False).print(grid)
        return
    _console.print(grid)


def emit(value: Any) -> None:
    """Print the one JSON object of ``--json``."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def progress(title: str, total: int, unit: Literal["", "B"] = "") -> Iterator[Advance]:
    """A progress bar with ETA on a terminal; elsewhere a line every tenth of the way, at most one a second.

    unit: "B" where bytes are counted, which are shown in powers of 1000.
    """
    if _state["quiet"] or not sys.stdout.isatty():
        yield _lines(title, total, unit)
        return
    count = DownloadColumn() if unit else TextColumn("{task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), count,
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _lines(title: str, total: int, unit: str) -> Advance:
    started = time.monotonic()
    shown = {"at": started, "tenth": 0}

    def advance(done: int, note: str = "") -> None:
        now, tenth = time.monotonic(), 10 * done // max(total, 1)
        if tenth > shown["tenth"] and now - shown["at"] >= 1:
            shown.update(at=now, tenth=tenth)
            left = (now - started) / max(done, 1) * (total - done)
            count = f"{done / 1e6:.0f}/{total / 1e6:.0f} MB" if unit else f"{done}/{total}"
            say(f"{title} {count}, {now - started:.0f} s, {left:.0f} s left{', ' + note if note else ''}")

    return advance
