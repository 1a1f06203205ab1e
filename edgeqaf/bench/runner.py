"""The cells that are not done yet, each computed once, in child processes of one thread."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from edgeqaf import plugins
from edgeqaf.bench import store
from edgeqaf.bench.cell import FLOAT, Cell
from edgeqaf.bench.places import Places, require_data
from edgeqaf.bench.pool import work_off
from edgeqaf.console import be_quiet, progress, say
from edgeqaf.errors import EdgeqafError, RuntimeAbsent
from edgeqaf.metrics import rouge_scorer
from edgeqaf.protocols import Runtime

RUNTIMES = ("llama_cpp", "onnxruntime")


@dataclass(frozen=True)
class Outcome:
    """cells: of the selection. before: done when the run began. computed: by it. failed: what stopped a cell."""

    cells: int
    before: int
    computed: int
    failed: dict[str, EdgeqafError]


def run(cells: Sequence[Cell], places: Places, jobs: int) -> Outcome:
    """Compute what is missing of ``cells``; a cell that fails is said, and the others go on."""
    tasks = sorted({cell.task for cell in cells})
    require_data(tasks, places.data)
    require_runtimes(places)
    if any(plugins.find("tasks", task).metric == "rouge" for task in tasks):
        rouge_scorer()
    with store.claimed(places.out):
        missing = [cell for cell in cells if not store.file_of(places.cells, cell).is_file()]
        _bases(missing, places)
        failed = _work(missing, places, jobs, len(cells) - len(missing))
    return Outcome(len(cells), len(cells) - len(missing), len(missing) - len(failed), failed)


def require_runtimes(places: Places) -> None:
    """Every cell is scored in every runtime, so that no figure is of some of them."""
    for name in RUNTIMES:
        runtime: Runtime = plugins.find("runtimes", name)
        found = runtime.availability(places.runtime)
        if found.version is None:
            raise RuntimeAbsent(f"{name} is absent: {found.reason}", "install it: pip install 'edgeqaf[llama,eval]'")


def _bases(cells: Sequence[Cell], places: Places) -> None:
    from edgeqaf.quantize import quantize

    for model, grid in dict.fromkeys((cell.model, cell.grid) for cell in cells if cell.grid != FLOAT):
        if not places.base(model, grid).is_dir():
            quantize(places.models[model], places.base(model, grid), grid, "rtn")


def _work(missing: Sequence[Cell], places: Places, jobs: int, before: int) -> dict[str, EdgeqafError]:
    failed: dict[str, EdgeqafError] = {}
    os.environ["OMP_NUM_THREADS"] = "1"  # of the children
    started = time.monotonic()
    with progress("bench", len(missing)) as advance:
        for done, (cell, error) in enumerate(work_off(partial(_compute, places), missing, jobs), 1):
            if error is not None:
                failed[cell.key] = error
                say(f"{cell.key}: {error.cause}; {error.remedy}")
            left = (time.monotonic() - started) / done * (len(missing) - done)
            if not sys.stdout.isatty():
                say(f"{before + done}/{before + len(missing)} {cell.key}, {left / 3600:.1f} h left")
            advance(done, cell.key)
    return failed


def _compute(places: Places, cell: Cell) -> None:
    """One cell, in a child; the result is written there, so nothing that is done is lost."""
    from edgeqaf.bench.measure import compute

    be_quiet(True)
    store.save(places.cells, cell, compute(cell, places))
