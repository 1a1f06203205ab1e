"""One run of the bench and its key. Equal cells give equal results, so a result is kept under the key for good."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FLOAT = "float32"  # stands for a grid where nothing is quantized


@dataclass(frozen=True)
class Cell:
    """model, task, contender: names. grid: a grid's, or `FLOAT`. rates: (option, learning rate) pairs.

    choosing: scored on other held-out rows than every cell whose figures are shown; rates are chosen there.
    """

    model: str
    task: str
    grid: str
    contender: str
    rates: tuple[tuple[str, float], ...]
    seed: int
    steps: int
    choosing: bool = False

    @property
    def key(self) -> str:
        """The name of its result: a file name on every system."""
        rates = "".join(f"@{option}={rate:g}" for option, rate in self.rates)
        parts = [self.model, self.task, self.grid, self.contender + rates, f"seed{self.seed}", f"steps{self.steps}"]
        return ".".join([*parts, *(["choosing"] if self.choosing else [])])

    def record(self) -> dict[str, Any]:
        """The cell in what JSON can hold."""
        return asdict(self) | {"rates": dict(self.rates)}


def cell_of(record: Mapping[str, Any]) -> Cell:
    """The cell that `Cell.record` wrote; TypeError or KeyError for anything else."""
    return Cell(**{**record, "rates": tuple(dict(record["rates"]).items())})
