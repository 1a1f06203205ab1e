"""What else is made of the climbs of one `edgeqaf verify`: nothing, a golden file, or checks against one."""

from collections.abc import Sequence
from pathlib import Path

from edgeqaf.dist import Dist
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.report import Check, Difference
from runtime_tests.golden import comparison
from runtime_tests.golden.file import Entry, read, to_record, write
from runtime_tests.job import Outcome


class Watch:
    """Nothing more than the checks of the ladder. observes: whether climbs are to bring entries."""

    observes = False

    def of_model(self) -> list[Check]:
        """Checks for which nothing need run."""
        return []

    def of_climb(self, outcome: Outcome, damaged: Sequence[str]) -> list[Check]:
        """All checks of a climb. damaged: the artifact's tensors that are not the receipt's."""
        return outcome.checks


class Record(Watch):
    """Adds what it sees to a golden file, once `write` is called. Raises UsageError as `to_record` does."""

    observes = True

    def __init__(self, path: Path, dist: Dist, force: bool) -> None:
        self._path, self._force = path, force
        self._golden = to_record(path, dist.receipt["root"], dist.digests, force)
        self._seen: list[Entry] = []

    def of_climb(self, outcome: Outcome, damaged: Sequence[str]) -> list[Check]:
        if outcome.observed:
            self._seen.append(outcome.observed)
        return outcome.checks

    def write(self) -> int:
        """Write the file and return how many entries were seen.

        Raises RuntimeAbsent if there were none, UsageError as `runtime_tests.golden.file.Golden.added` does.
        """
        if not self._seen:
            raise RuntimeAbsent(
                f"nothing to record in {self._path}: no runtime was there", "edgeqaf doctor says what is missing"
            )
        write(self._golden.added(self._seen, self._path, self._force), self._path)
        return len(self._seen)


class Compare(Watch):
    """Holds what it sees against a golden file. Raises Refused for one that is malformed."""

    observes = True

    def __init__(self, path: Path, dist: Dist) -> None:
        self._name, self._golden, self._digests = path.name, read(path), dist.digests
        self._changed = comparison.differences(self._golden.tensors, self._digests)

    def of_model(self) -> list[Check]:
        return [comparison.tensors(self._golden, self._digests, self._name)]

    def of_climb(self, outcome: Outcome, damaged: Sequence[str]) -> list[Check]:
        if outcome.observed is None:
            return outcome.checks
        spoilt = {name: Difference(name, (), "the receipt's", "damaged") for name in damaged}
        changed = dict(sorted({**spoilt, **self._changed}.items()))
        subject = outcome.checks[0].subject
        return [*outcome.checks, comparison.entry(self._golden, outcome.observed, subject, changed)]
