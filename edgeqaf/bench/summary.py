"""Results over seeds: what a table or a plot asks for, by names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeqaf.bench.cell import FLOAT, Cell
from edgeqaf.bench.contenders import CONTENDERS, FAMILIES, FULL, FULL_LINEARS, UNTUNED
from edgeqaf.bench.store import Result

STORED, UNMERGED, AGAIN = "stored", "float", "requantized"


@dataclass(frozen=True)
class Row:
    """One form of a contender: as its integers are stored, as floats, or quantized again."""

    contender: str
    form: str

    @property
    def title(self) -> str:
        named = CONTENDERS[self.contender].title
        in_floats = {UNTUNED: f"{named}, float32", FULL: named, FULL_LINEARS: named}
        if self.form == UNMERGED:
            return in_floats.get(self.contender, f"{named}, unmerged")
        if self.form == AGAIN:
            return f"{named}, {'then quantized' if self.contender in in_floats else 'merged and quantized again'}"
        return named


@dataclass(frozen=True)
class Figure:
    """Values by seed."""

    seeds: Mapping[int, float]

    @property
    def mean(self) -> float:
        return sum(self.seeds.values()) / len(self.seeds)

    @property
    def spread(self) -> float:
        """Half the range of the seeds; 0 for one."""
        return (max(self.seeds.values()) - min(self.seeds.values())) / 2

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.spread:.3f}" if len(self.seeds) > 1 else "")


def rows_of(family: str) -> list[Row]:
    """The rows of a family's tables: floats, the usual road, methods that fold."""
    found = [Row(UNTUNED, UNMERGED), Row(UNTUNED, STORED)]
    if family == "symmetric":
        found += [Row(name, form) for name in (FULL, FULL_LINEARS) for form in (UNMERGED, AGAIN)]
    for name, contender in CONTENDERS.items():
        if name in ("lora", "q_bara") and family in contender.families:
            found += [Row(name, UNMERGED), Row(name, AGAIN)]
        elif contender.method and family in contender.families:
            found.append(Row(name, STORED))
    return found


class Summary:
    """Scores by place; every cell of a place has the same steps and rates."""

    def __init__(self, results: Mapping[Cell, Result]) -> None:
        self.results = {cell: result for cell, result in results.items() if not cell.choosing}
        self.chosen = {cell: result for cell, result in results.items() if cell.choosing}
        self._scores: dict[tuple[str, ...], dict[int, float]] = {}
        for cell, result in self.results.items():
            for form, by_runtime in result["scores"].items():
                name, _, grid = str(form).partition(" ")  # "quantized q3_0": floats, quantized afterwards
                for runtime, score in by_runtime.items():
                    for metric, value in score.items():
                        place = (cell.model, cell.task, grid or cell.grid, cell.contender, AGAIN if grid else name)
                        self._scores.setdefault((*place, runtime, metric), {})[cell.seed] = value

    def figure(self, model: str, task: str, grid: str, row: Row, runtime: str = "torch",
               metric: str = "loss") -> Figure | None:  # fmt: skip
        """What was measured; of floats, whatever the grid of the table."""
        floats = FLOAT in CONTENDERS[row.contender].grids and row.form == UNMERGED
        found = self._scores.get((model, task, FLOAT if floats else grid, row.contender, row.form, runtime, metric))
        return Figure(found) if found else None

    def present(self, kind: str) -> list[str]:
        """The models, tasks, grids or contenders that there are results of, in the order they were asked for."""
        return list(dict.fromkeys(str(getattr(cell, kind)) for cell in self.results))

    def families(self, model: str) -> list[str]:
        """Families of grids that a model was measured on."""
        grids = {cell.grid for cell in self.results if cell.model == model}
        return [name for name, known in FAMILIES.items() if name != "float" and grids & set(known)]

    def cells(self, **named: str | int) -> list[tuple[Cell, Result]]:
        """The cells whose fields are as named."""
        return [(c, r) for c, r in self.results.items() if all(getattr(c, k) == v for k, v in named.items())]


def differing_batches(results: Mapping[Cell, Result]) -> list[str]:
    """Places where two runs of one seed did not see the same tokens; none, if the comparison is fair."""
    seen: dict[tuple[str, str, int, int], set[str]] = {}
    for cell, result in results.items():
        if "batches" in result:
            seen.setdefault((cell.model, cell.task, cell.seed, cell.steps), set()).add(result["batches"])
    return [f"{model}, {task}, seed {seed}" for (model, task, seed, _), found in seen.items() if len(found) > 1]


def mixed_models(results: Mapping[Cell, Result]) -> list[str]:
    """Models of which there are results from different files."""
    found: dict[str, set[str]] = {}
    for cell, result in results.items():
        found.setdefault(cell.model, set()).add(str(result.get("model_sha256")))
    return sorted(model for model, digests in found.items() if len(digests) > 1)


def ordered(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """``names`` in the order of ``known``."""
    return [name for name in known if name in set(names)]
