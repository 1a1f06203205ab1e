"""The report's tables: a title, what is said under it, columns and rows; nothing of how they are written down."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from edgeqaf import plugins
from edgeqaf.bench.contenders import CONTENDERS, FAMILIES, UNTUNED, bits
from edgeqaf.bench.goals import judgements
from edgeqaf.bench.rates import KINDS, rates_of
from edgeqaf.bench.summary import STORED, Figure, Row, Summary, rows_of

RUNTIMES = {"torch": "PyTorch", "llama_cpp": "llama.cpp", "onnxruntime": "ONNX Runtime"}
METRICS = {"exact-match": "exact_match", "rouge": "rouge_l"}
NONE = "–"


@dataclass(frozen=True)
class Table:
    """Cells are text; the first column is a name, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def losses(summary: Summary, model: str) -> Iterator[Table]:
    """Held-out loss, a table for each grid; the best of what folds in bold."""
    tasks = summary.present("task")
    for name in summary.families(model):
        for grid in FAMILIES[name]:
            found = [(row, [summary.figure(model, task, grid, row) for task in tasks]) for row in rows_of(name)]
            found = [(row, figures) for row, figures in found if any(figures)]
            folding = [figures for row, figures in found if _folds(row)]
            if not folding:
                continue
            best = [_best(column) for column in zip(*folding, strict=True)]
            lines = []
            for row, figures in found:
                pairs = zip(figures, best, strict=True)
                lines.append(
                    [row.title, *(_marked(f, f is not None and _folds(row) and f.mean == b) for f, b in pairs)]
                )
            yield Table(f"Held-out loss, {bits(grid)} bits ({grid})", ["", *map(_title, tasks)], lines)


def goals(summary: Summary, model: str) -> Table:
    """Every goal, place by place."""
    tasks = summary.present("task")
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for found in judgements(summary, model):
        said = found.verdict if found.difference is None else f"{found.verdict} ({found.difference:+.3f})"
        lines.setdefault((str(found.goal), found.grid), {})[found.task] = said
    rows = [[f"{goal}, {bits(grid)} bits", *(by_task[t] for t in tasks)] for (goal, grid), by_task in lines.items()]
    return Table("Goals", ["loss", *map(_title, tasks)], rows, "In brackets: the difference of mean losses in nats.")


def artifacts(summary: Summary, model: str) -> Table:
    """How far the runtimes' losses on the exported files are from PyTorch's on the same integers."""
    rows = []
    for name in summary.families(model):
        for grid in FAMILIES[name]:
            scores = [form for _, r in summary.cells(model=model, grid=grid) for form in r["scores"].values()]
            line = [grid]
            for runtime in ("llama_cpp", "onnxruntime"):
                apart = [s[runtime]["loss"] - s["torch"]["loss"] for s in scores if runtime in s]
                line += [f"{len(apart)}", *((f"{sum(apart) / len(apart):+.4f}", f"{max(map(abs, apart)):.4f}")
                                            if apart else (NONE, NONE))]  # fmt: skip
            rows.append(line)
    columns = ["grid"]
    for runtime in ("llama_cpp", "onnxruntime"):
        columns += [f"{RUNTIMES[runtime]}: files", "mean difference", "largest"]
    return Table(
        "Loss from the artifact, less PyTorch's", columns, rows,
        "Both runtimes round activations to 8 bits, as they do by default; the integers are the same.",
    )  # fmt: skip


def answers(summary: Summary, model: str) -> Iterator[Table]:
    """Exact match or ROUGE-L, a table for each symmetric grid, from PyTorch and from the artifacts."""
    metrics = {task: METRICS.get(plugins.find("tasks", task).metric or "") for task in summary.present("task")}
    tasks = [task for task, metric in metrics.items() if metric]
    for grid in FAMILIES["symmetric"]:
        lines, quantized = [], False
        for row in rows_of("symmetric"):
            for runtime, said in RUNTIMES.items():
                found = [summary.figure(model, task, grid, row, runtime, str(metrics[task])) for task in tasks]
                if any(found):
                    quantized |= row.form == STORED
                    lines.append([row.title, said, *(_marked(f, False) for f in found)])
        if quantized:
            names = {"exact_match": "exact match", "rouge_l": "ROUGE-L"}
            columns = [f"{_title(task)}, {names[str(metrics[task])]}" for task in tasks]
            yield Table(f"Answers, {bits(grid)} bits ({grid})", ["", "answered by", *columns], lines)


def costs(summary: Summary, model: str) -> Table:
    """Codes moved, bytes and time, on the first grid of each contender."""
    rows = []
    for name, contender in CONTENDERS.items():
        found = [r for _, r in summary.cells(model=model, contender=name, grid=contender.grids[0]) if "step_ms" in r]
        if not found:
            continue
        moved = [r["moved"] for r in found if "moved" in r]
        shares = [100 * m["moved"] / m["weights"] for m in moved]
        others = [100 * max(m["zeros_moved"] / max(m["zeros"], 1), m["scales_moved"] / m["scales"]) for m in moved]
        times = sorted(r["step_ms"]["cpu"] for r in found)
        rows.append([
            contender.title, contender.grids[0], _range(shares), _range(others) if max(others, default=0) else NONE,
            f"{found[0]['trained_bytes']:,}", f"{found[0]['state_bytes']:,}", f"{times[len(times) // 2]:.0f}",
        ])  # fmt: skip
    columns = ["", "grid", "codes moved, %", "scales or zeros moved, %", "bytes trained", "bytes of state", "ms a step"]
    return Table(
        "What it costs", columns, rows,
        "Moved: least to most over tasks and seeds; of a baseline, once merged and quantized again. "
        "State: what is trained and the optimizer's moments. Time: median of one CPU thread's, all tasks together.",
    )  # fmt: skip


def rates(summary: Summary, model: str) -> Table:
    """Rates that were tried, on held-out rows of their own, and the one taken."""
    rows = []
    for name, contender in CONTENDERS.items():
        for kind, grid in product(KINDS, contender.grids):
            cells = [(c, r) for c, r in summary.chosen.items() if (c.model, c.contender, c.grid) == (model, name, grid)]
            cells = [(c, r) for c, r in cells if plugins.find("tasks", c.task).kind == kind]
            tried = {dict(c.rates)["lr"]: next(iter(r["scores"].values()))["torch"]["loss"] for c, r in cells}
            known = rates_of(model, name)
            if tried and known:
                said = ", ".join(f"{lr:g}: {loss:.3f}" for lr, loss in sorted(tried.items()))
                rows.append([contender.title, grid, kind, said, f"{dict(known.of(kind, bits(grid)))['lr']:g}"])
    return Table("Learning rates tried", ["", "grid", "kind of task", "rate: loss", "taken"], rows)


def _folds(row: Row) -> bool:
    """Whether this is what a method tuned and folded."""
    return row.form == STORED and row.contender != UNTUNED


def _best(figures: Sequence[Figure | None]) -> float:
    return min((f.mean for f in figures if f is not None), default=0.0)


def _marked(figure: Figure | None, best: bool) -> str:
    return NONE if figure is None else f"**{figure}**" if best else str(figure)


def _title(task: str) -> str:
    return str(plugins.find("tasks", task).title)


def _range(shares: Sequence[float]) -> str:
    return f"{min(shares):.3g} to {max(shares):.3g}" if shares else NONE
