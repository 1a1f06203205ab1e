"""The matrix as values: rows (runtime, configuration), columns (models), and in each cell what the ladder found."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

from edgeqaf.report import RUNGS, SETTINGS, Check, Verdict

ASKED = RUNGS[1:]  # of a runtime; R0 is asked of files
MARKS = (*ASKED, SETTINGS)
FAILED = (Verdict.DIFFERENT, Verdict.REFUSED)


class State(Enum):
    """What a cell amounts to: its worst finding. Of one that is partly absent some rung found nothing to compare."""

    EXACT = "exact"
    BOUNDED = "bounded"
    PARTLY = "partly absent"
    DIFFERENT = "different"
    REFUSED = "refused"
    ABSENT = "absent"
    NOT_OFFERED = "not offered"


@dataclass(frozen=True)
class Row:
    """One way to run a runtime; configuration is "" for a runtime that is absent as a whole."""

    family: str
    runtime: str
    configuration: str
    version: str = ""
    isa: str = ""


@dataclass(frozen=True)
class Column:
    """A model: dist folders with the same integers, by name."""

    root: str
    label: str
    folders: tuple[str, ...]
    weights: int
    grids: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A check, in which folder it was made, and the digest of the logits of its climb."""

    check: Check
    folder: str
    logits: str = ""

    @property
    def source(self) -> tuple[str, str]:
        """Folder and format of the artifact that was asked for."""
        return self.folder, self.check.subject.split()[-1]


@dataclass(frozen=True)
class Cell:
    """What was found of one row in one column; empty where no artifact is for it.

    letter: of the logits that other rows of the column have to the bit; "" where none has.
    """

    findings: tuple[Finding, ...] = ()
    letter: str = ""

    def at(self, rung: str) -> list[Check]:
        return [f.check for f in self.findings if f.check.rung == rung]

    def marks(self, rung: str) -> list[Check]:
        """The checks of a rung, but those that say what was said of another folder's or format's artifact."""
        said: Counter[Verdict] = Counter()
        shown = []
        for source in dict.fromkeys(f.source for f in self.findings):
            own: Counter[Verdict] = Counter()
            for check in (f.check for f in self.findings if f.source == source and f.check.rung == rung):
                own[check.verdict] += 1
                if own[check.verdict] > said[check.verdict]:
                    shown.append(check)
            said |= own
        return shown

    @property
    def state(self) -> State:
        found = {f.check.verdict for f in self.findings}
        if not found:
            return State.NOT_OFFERED
        for verdict in FAILED:
            if verdict in found:
                return State(verdict.value)
        if Verdict.ABSENT in found:
            return State.PARTLY if found - {Verdict.ABSENT} else State.ABSENT
        return State.BOUNDED if Verdict.BOUNDED in found else State.EXACT

    @property
    def reached(self) -> str:
        """The last rung that was climbed before one that was not, "" for none. A rung that is not offered is passed."""
        return self._last(Verdict.EXACT, Verdict.BOUNDED)

    @property
    def exact_to(self) -> str:
        """Likewise, the last rung of equal bits."""
        return self._last(Verdict.EXACT)

    @property
    def logits(self) -> list[str]:
        return sorted({f.logits for f in self.findings if f.logits})

    def _last(self, *accepted: Verdict) -> str:
        last = ""
        for rung in ASKED:
            verdicts = {check.verdict for check in self.at(rung)}
            if verdicts - set(accepted):
                break
            last = rung if verdicts else last
        return last


@dataclass(frozen=True)
class Totals:
    """Values compared, by unit; how many differ where bits must be equal, and how many within a bound."""

    compared: Mapping[str, int]
    differing: int
    bounded: int


@dataclass(frozen=True)
class Matrix:
    """files: R0 of each column. cells: by (row, column), of every pair."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    files: Mapping[Column, Cell]
    cells: Mapping[tuple[Row, Column], Cell]
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        return [f for cell in (*self.files.values(), *self.cells.values()) for f in cell.findings]

    @property
    def states(self) -> dict[State, int]:
        """How many cells amount to what."""
        found = [cell.state for cell in self.cells.values()]
        return {state: found.count(state) for state in State}

    @property
    def rungs(self) -> dict[str, dict[Verdict, int]]:
        """Of each rung, R0 and the settings with them, how many marks have which verdict."""
        files = [f.check.verdict for cell in self.files.values() for f in cell.findings]
        marks = {rung: [c.verdict for cell in self.cells.values() for c in cell.marks(rung)] for rung in MARKS}
        marks = {RUNGS[0]: files, **marks}
        return {rung: {v: found.count(v) for v in Verdict} for rung, found in marks.items() if found}

    @property
    def widths(self) -> dict[str, int]:
        """Of each rung, the most marks that a cell has."""
        return {rung: max((len(cell.marks(rung)) for cell in self.cells.values()), default=0) or 1 for rung in MARKS}

    @property
    def failures(self) -> list[Finding]:
        return [f for f in self.findings if f.check.verdict in FAILED]

    @property
    def totals(self) -> Totals:
        """Of all cells; R0 is left out, which no runtime computes."""
        checks = [f.check for cell in self.cells.values() for f in cell.findings]
        units = dict.fromkeys(["weights", "outputs", "logits", *(c.unit for c in checks)], 0)
        for c in checks:
            units[c.unit] += c.compared
        bounded = sum(c.differing for c in checks if c.verdict is Verdict.BOUNDED)
        return Totals(units, sum(c.differing for c in checks) - bounded, bounded)


def lettered(cells: Iterable[Cell]) -> list[Cell]:
    """The cells of one column, in order, a letter to each that has its logits in common with another."""
    found = list(cells)
    shared = [cell.logits[0] for cell in found if len(cell.logits) == 1]
    letters: dict[str, str] = {}
    numbers = count()
    for digest in shared:
        if shared.count(digest) > 1 and digest not in letters:
            letters[digest] = _letter(next(numbers))
    return [Cell(cell.findings, letters.get("".join(cell.logits), "")) for cell in found]


def _letter(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    before = _letter(number // 26 - 1) if number >= 26 else ""
    return before + chr(ord("A") + number % 26)
