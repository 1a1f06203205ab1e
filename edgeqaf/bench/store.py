"""Results on disk: one file a cell, there as a whole or not at all."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeqaf.bench.cell import Cell, cell_of
from edgeqaf.errors import Refused, UsageError
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.staging import staged

FORMAT = 1
Result = dict[str, Any]


def file_of(cells: Path, cell: Cell) -> Path:
    return cells / f"{cell.key}.json"


def save(cells: Path, cell: Cell, result: Result) -> None:
    """Write the result of a cell; never over an earlier one."""
    if not file_of(cells, cell).exists():
        with staged(file_of(cells, cell)) as part:
            write_json(part, {"format": FORMAT, "cell": cell.record(), **result})


def load(file: Path) -> tuple[Cell, Result]:
    """A cell and its result; Refused where the file is not what its name says."""
    return _checked(read_json(file), str(file), file.stem)


def done(cells: Path, wanted: Iterable[Cell]) -> dict[Cell, Result]:
    """The results that there are, in the order of ``wanted``."""
    return {cell: load(file_of(cells, cell))[1] for cell in wanted if file_of(cells, cell).is_file()}


def collect(file: Path) -> dict[Cell, Result]:
    """The results that a report keeps in one file (`together`)."""
    held = read_json(file).get("cells")
    if not isinstance(held, dict):
        raise Refused(f"{file} holds no cells", "pass the methods.json of an earlier report")
    return dict(_checked(value, f"{file}: {key}", key) for key, value in held.items())


def together(results: Mapping[Cell, Result]) -> Result:
    """What `collect` reads."""
    cells = {cell.key: {"format": FORMAT, "cell": cell.record(), **result} for cell, result in results.items()}
    return {"format": FORMAT, "cells": cells}


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the folder of results for one process; clears what a killed one left in work."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another bench is at work in {out}", "wait for it, or choose another -o") from None
        shutil.rmtree(out / "scratch", ignore_errors=True)
        yield
        shutil.rmtree(out / "scratch", ignore_errors=True)


def _checked(held: Any, place: str, key: str) -> tuple[Cell, Result]:
    try:
        version, cell = held["format"], cell_of(held["cell"])
        whole = version == FORMAT and cell.key == key and isinstance(held["scores"], dict)
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise Refused(f"{place} is no result of the cell {key}", "remove it, and it is computed again")
    return cell, {name: value for name, value in held.items() if name not in ("format", "cell")}
