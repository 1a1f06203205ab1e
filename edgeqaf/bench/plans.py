"""Which cells there are: named plans, each a list in the order in which results are worth having."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from edgeqaf import plugins
from edgeqaf.bench.cell import FLOAT, Cell
from edgeqaf.bench.contenders import CONTENDERS, FAMILIES, FULL, FULL_LINEARS, UNTUNED, bits
from edgeqaf.bench.rates import KINDS, rates_of
from edgeqaf.errors import UsageError

STEPS, SEEDS = 300, (0, 1, 2)
MODELS = ("tinystories656k", "storyteller-6m")
FIRST = (UNTUNED, "lora", "codes", "lowrank", "codes-residual", "lowrank-residual", "lowrank+scale", FULL)
NEXT = ("scale", "lota", "lota-paper", "q_bara", FULL_LINEARS)
WITH_ZERO = (
    UNTUNED, "lora", "codes", "lota-offset", "lota-paper-offset", "lota-paper-offset-code", "qa_hira", "qa_lora",
)  # fmt: skip
OF_KIND = {"task": "viggo", "recovery": "recovery", "style": "shakespeare"}  # where rates are tried


def quick(models: Sequence[str]) -> Iterator[Cell]:
    """A few cells of a few steps: whether it works."""
    yield from _product(models, ("viggo",), (FLOAT, "q4_0"), (UNTUNED, "lora", "codes"), (0,), 20)


def main(models: Sequence[str]) -> Iterator[Cell]:
    """What the documentation shows.

    On the first model every method on every task at 4, 3 and 2 bits with three seeds, and at 4 bits, once, the
    methods that want a zero. On the others what matters most: 4 bits, the first contenders, one seed.
    """
    tasks, small, large = _tasks(), models[:1], models[1:]
    first = FAMILIES["symmetric"][0]

    def symmetric(seed: int, contenders: Sequence[str]) -> Iterator[Cell]:
        for grid in FAMILIES["symmetric"]:
            grids = (FLOAT, grid) if grid == first else (grid,)
            yield from _product(small, tasks, grids, contenders, (seed,), STEPS)

    yield from symmetric(SEEDS[0], FIRST)
    yield from symmetric(SEEDS[0], NEXT)
    for name in ("offset", "integer"):
        yield from _product(small, tasks, FAMILIES[name][:1], WITH_ZERO, SEEDS[:1], STEPS)
    yield from _product(large, tasks, (FLOAT, first), FIRST, SEEDS[:1], STEPS)
    for contenders in (FIRST, NEXT):
        for seed in SEEDS[1:]:
            yield from symmetric(seed, contenders)


def full(models: Sequence[str]) -> Iterator[Cell]:
    """Every cell there is."""
    grids = [grid for name in FAMILIES for grid in FAMILIES[name]]
    yield from _product(models, _tasks(), grids, tuple(CONTENDERS), SEEDS, STEPS)


def rates(models: Sequence[str]) -> Iterator[Cell]:
    """Every learning rate that was tried, scored on rows that no table shows.

    On the first grid of its contender, and on those of fewer bits that have a rate of their own.
    """
    grids = (FLOAT, "q4_1", *FAMILIES["symmetric"])
    for kind in KINDS:
        for cell in _product(models, (OF_KIND[kind],), grids, tuple(CONTENDERS), (0,), STEPS):
            found = rates_of(cell.model, cell.contender)
            if (
                found
                and found.tried_for in ("", kind)
                and (cell.grid == CONTENDERS[cell.contender].grids[0] or (kind, bits(cell.grid)) in found.narrow)
            ):
                others = found.of(kind)[1:]
                for lr in found.tried:
                    yield replace(cell, rates=(("lr", lr), *others), choosing=True)


PLANS: dict[str, Callable[[Sequence[str]], Iterator[Cell]]] = {
    "quick": quick, "main": main, "full": full, "rates": rates,
}  # fmt: skip


def select(
    plan: str,
    models: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    grids: Sequence[str] = (),
    contenders: Sequence[str] = (),
    seeds: Sequence[int] = (),
    steps: int | None = None,
) -> list[Cell]:
    """The cells of a plan, each once; of those only what is named, where something is.

    Raises UsageError for an unknown name, and where nothing is left.
    """
    if plan not in PLANS:
        raise UsageError(f"unknown plan {plan!r}", f"known: {', '.join(PLANS)}")
    every_grid = [grid for name in FAMILIES for grid in FAMILIES[name]]
    for kind, given, known in (("grid", grids, every_grid), ("method", contenders, list(CONTENDERS))):
        if unknown := [name for name in given if name not in known]:
            raise UsageError(f"the bench has no {kind} {unknown[0]!r}", f"known: {', '.join(known)}")
    tasks = [plugins.resolve("tasks", task) for task in tasks]
    found = [
        cell if steps is None or cell.contender == UNTUNED else replace(cell, steps=steps)
        for cell in PLANS[plan](models)
        if (not tasks or cell.task in tasks) and (not grids or cell.grid in grids)
        and (not contenders or cell.contender in contenders) and (not seeds or cell.seed in seeds)
    ]  # fmt: skip
    if not found:
        named = [str(name) for given in (tasks, grids, contenders, seeds) for name in given]
        raise UsageError(f"the plan {plan} has no cell of {', '.join(named)}", "see what it has: --list")
    return list(dict.fromkeys(found))


def _tasks() -> tuple[str, ...]:
    """All tasks, text first."""
    return tuple(sorted(plugins.names("tasks"), key=lambda name: plugins.find("tasks", name).metric is not None))


def _product(models: Iterable[str], tasks: Iterable[str], grids: Iterable[str], contenders: Iterable[str],
             seeds: Iterable[int], steps: int) -> Iterator[Cell]:  # fmt: skip
    """Every combination that a contender runs on; what is not tuned has one seed and no steps."""
    for seed in seeds:
        for grid in grids:
            for model in models:
                for task in tasks:
                    for name in contenders:
                        if grid not in CONTENDERS[name].grids or (name == UNTUNED and seed):
                            continue
                        found = rates_of(model, name)
                        chosen = found.of(plugins.find("tasks", task).kind, bits(grid)) if found else ()
                        yield Cell(model, task, grid, name, chosen, seed, 0 if name == UNTUNED else steps)
