"""``edgeqaf bench``: compare the tuning methods, each on equal batches, scored from its artifacts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeqaf.options import Json, LlamaLib, listed

if TYPE_CHECKING:
    from edgeqaf.bench.cell import Cell
    from edgeqaf.bench.places import Places

command = typer.Typer(name="bench", no_args_is_help=True, help="Compare the tuning methods on equal terms.")


@command.callback()
def _group() -> None:
    """A group, though it has one verb so far."""


@command.command()
def methods(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of results; what is done there is not done again.")
    ] = Path("bench"),
    data: Annotated[
        Path | None, typer.Option(help="Folder with data/ and models/; default: shared, beside the checkout.")
    ] = None,
    plan: Annotated[str, typer.Option(help="quick, main (what the documentation shows), full, or rates.")] = "main",
    models: Annotated[str | None, typer.Option(help="Names under models/, or folders; default: both.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    grids: Annotated[str | None, typer.Option(help="Only these grids; float32 for what is not quantized.")] = None,
    methods: Annotated[str | None, typer.Option(help="Only these methods, as --list names them.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps; default: the plan's, 300.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    from_: Annotated[
        Path | None, typer.Option("--from", help="Begin with the results in an earlier report's methods.json.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the cells, and which are done; run nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Run nothing: make the tables and plots of what is done in this folder.")
    ] = None,
    llama_lib: LlamaLib = None,
    json: Json = False,
) -> None:
    """Train every method on every task and grid, score it from its artifacts; or report what was found."""
    from edgeqaf.bench import store
    from edgeqaf.bench.places import Places, data_folder, models_of
    from edgeqaf.bench.plans import MODELS, select
    from edgeqaf.protocols import RuntimeOptions

    folder = data_folder(data)
    found = models_of(listed(models) or MODELS, folder)
    cells = select(
        plan, list(found), tasks=listed(tasks), grids=listed(grids), contenders=listed(methods),
        seeds=_numbers(seeds), steps=steps,
    )  # fmt: skip
    places = Places(folder, found, output, RuntimeOptions(llama_lib, 1))
    if from_ is not None:
        for cell, result in store.collect(from_).items():
            store.save(places.cells, cell, result)
    if list_:
        _list(cells, places, json)
    elif report is not None:
        _report(cells, places, report, json)
    else:
        _run(cells, places, jobs, json)


def _numbers(seeds: str | None) -> list[int]:
    from edgeqaf.errors import UsageError

    try:
        return [int(seed) for seed in listed(seeds)]
    except ValueError:
        raise UsageError(f"--seeds {seeds} are no whole numbers", "write for example --seeds 0,1") from None


def _list(cells: "list[Cell]", places: "Places", json: bool) -> None:
    from edgeqaf.bench import store
    from edgeqaf.console import emit, say

    there = {cell.key: store.file_of(places.cells, cell).is_file() for cell in cells}
    for key, done in there.items():
        say(f"{'done' if done else '-   '} {key}")
    say(f"{sum(there.values())} of {len(there)} cells are done in {places.out}")
    if json:
        emit({"cells": there})


def _report(cells: "list[Cell]", places: "Places", folder: Path, json: bool) -> None:
    from edgeqaf.bench import store
    from edgeqaf.bench.pages import write
    from edgeqaf.bench.plans import select
    from edgeqaf.console import emit, say
    from edgeqaf.errors import Refused

    results = store.done(places.cells, cells)
    if not results:
        raise Refused(f"none of {len(cells)} cells is done in {places.out}", "run the same command without --report")
    tried = store.done(places.cells, select("rates", list(places.models)))
    written = write(folder, {**tried, **results}, len(cells))
    say(f"{folder}: {len(results)} of {len(cells)} cells, {len(written)} files")
    if json:
        emit({"cells": len(cells), "done": len(results), "files": [str(path) for path in written]})


def _run(cells: "list[Cell]", places: "Places", jobs: int, json: bool) -> None:
    from edgeqaf.bench.runner import run
    from edgeqaf.console import emit, say
    from edgeqaf.errors import EdgeqafError

    outcome = run(cells, places, jobs)
    say(f"{places.out}: {outcome.computed} cells computed, {outcome.before} were there")
    if json:
        failed: dict[str, Any] = {key: error.cause for key, error in outcome.failed.items()}
        emit({"cells": outcome.cells, "before": outcome.before, "computed": outcome.computed, "failed": failed})
    if outcome.failed:
        key, error = next(iter(outcome.failed.items()))
        stopped = EdgeqafError(f"{len(outcome.failed)} cells failed; the first is {key}: {error.cause}", error.remedy)
        stopped.exit_code = error.exit_code
        raise stopped
