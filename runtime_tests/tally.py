"""Adding up comparisons of bits over tensors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.report import Check, Difference, Verdict, first_difference
from runtime_tests.job import Job, subject

Place = Callable[..., tuple[int, ...]]


class Tally:
    """What was compared, what of it differs, and the first difference."""

    def __init__(self) -> None:
        self.tensors: set[str] = set()
        self.wrong: dict[str, int] = {}
        self.compared = 0
        self.first: Difference | None = None

    def add(
        self,
        name: str,
        expected: Floats,
        found: Floats,
        different: NDArray[np.bool_],
        count: int | None = None,
        place: Place | None = None,
    ) -> None:
        """count: what these are comparisons of; one a value unless it is said. place: what an index here stands for."""
        self.tensors.add(name)
        self.compared += expected.size if count is None else count
        if different.any():
            self.wrong[name] = self.wrong.get(name, 0) + int(different.sum())
            first = None if self.first else first_difference(name, expected, found, different)
            if first is not None and first.index and place:
                first = replace(first, index=place(*first.index))
            self.first = self.first or first

    def check(self, rung: str, job: Job, detail: Any, unit: str = "weights") -> Check:
        names = sorted(self.wrong)
        verdict = Verdict.DIFFERENT if names else Verdict.EXACT
        if len(names) > 1:
            detail = f"{detail}; in {listed(names)}"
        wrong, count = sum(self.wrong.values()), len(self.tensors)
        return Check(rung, subject(job), verdict, count, self.compared, wrong, unit, detail, self.first, tuple(names))


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
