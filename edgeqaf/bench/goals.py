"""What the methods are meant to reach, and whether they do; what was missed stays in the tables."""

from collections.abc import Iterator
from dataclasses import dataclass

from edgeqaf.bench.contenders import FAMILIES, bits
from edgeqaf.bench.summary import AGAIN, STORED, UNMERGED, Figure, Row, Summary

UNMERGED_LORA, REQUANTIZED_LORA = Row("lora", UNMERGED), Row("lora", AGAIN)


@dataclass(frozen=True)
class Goal:
    """The mean loss of ``row`` is at most that of ``other`` plus ``within`` nats, at these bits; strictly below it?"""

    row: Row
    other: Row
    at: tuple[int, ...]
    within: float = 0.0
    strict: bool = False

    def __str__(self) -> str:
        relation = "below" if self.strict else f"within {self.within:g} nats of" if self.within else "at most"
        return f"{self.row.title} {relation} {self.other.title}"


CODES = [Row(name, STORED) for name in ("codes", "codes-residual")]
LOWRANK = [Row(name, STORED) for name in ("lowrank", "lowrank-residual", "lowrank+scale")]
GOALS = (
    *(Goal(row, UNMERGED_LORA, (4,)) for row in CODES),
    *(Goal(row, UNMERGED_LORA, (3,), within=0.05) for row in CODES),
    *(Goal(row, UNMERGED_LORA, (4,), within=0.05) for row in LOWRANK),
    *(Goal(row, REQUANTIZED_LORA, (4, 3, 2), strict=True) for row in CODES + LOWRANK),
)


@dataclass(frozen=True)
class Judgement:
    """A goal at one place. difference: mean of row minus mean of other over the seeds that both have; None if none."""

    goal: Goal
    model: str
    task: str
    grid: str
    seeds: int
    difference: float | None

    @property
    def verdict(self) -> str:
        """met, missed, or open where nothing was measured."""
        return judge(self.difference, self.goal.within, self.goal.strict)


def judge(difference: float | None, within: float, strict: bool) -> str:
    """A difference of losses against what is allowed; exactly the allowed one counts, unless it must be below."""
    if difference is None:
        return "open"
    return "met" if difference < within or (difference == within and not strict) else "missed"


def difference(one: Figure | None, other: Figure | None) -> tuple[float | None, int]:
    """Mean of ``one`` minus mean of ``other`` over their common seeds, and how many those are."""
    common = sorted(one.seeds.keys() & other.seeds.keys()) if one and other else []
    if one is None or other is None or not common:
        return None, 0
    return sum(one.seeds[s] - other.seeds[s] for s in common) / len(common), len(common)


def judgements(summary: Summary, model: str) -> Iterator[Judgement]:
    """Every goal on every task and grid of the symmetric family that the model was measured on."""
    for goal in GOALS:
        for grid in FAMILIES["symmetric"]:
            if bits(grid) not in goal.at:
                continue
            for task in summary.present("task"):
                pair = (summary.figure(model, task, grid, row) for row in (goal.row, goal.other))
                found, seeds = difference(*pair)
                yield Judgement(goal, model, task, grid, seeds, found)
