"""The values a report shows, gathered from folders; what they amount to is said in `edgeqaf.html`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqaf.errors import UsageError
from edgeqaf.html import inputs
from edgeqaf.html.inputs import LOG, Log, Receipt, Run
from edgeqaf.html.scores import Score, read_score
from edgeqaf.movement import Movement
from edgeqaf.report import Check, Verdict
from edgeqaf.splitnames import belonging


@dataclass(frozen=True)
class Tuning:
    """A run as shown: ``label`` tells runs of one method apart."""

    label: str
    run: Run
    log: Log | None
    options: Mapping[str, object]

    @property
    def moved(self) -> Movement:
        return sum(self.run.layers.values(), Movement())

    def is_in(self, receipt: Receipt) -> bool:
        """Whether the receipt holds exactly the integers this run tuned."""
        tuned = self.run.folded
        return bool(tuned) and all(n in receipt.tensors and receipt.tensors[n].digest == d for n, d in tuned.items())


@dataclass(frozen=True)
class Export:
    """A dist folder as shown. states: per file, "as recorded", "differs" or "missing"; checks: None if not verified."""

    receipt: Receipt
    states: Mapping[str, str]
    checks: tuple[Check, ...] | None

    @property
    def counts(self) -> dict[Verdict, int]:
        return {v: sum(c.verdict is v for c in self.checks or ()) for v in Verdict}

    @property
    def rungs(self) -> list[str]:
        return sorted({c.rung for c in self.checks or ()})

    @property
    def by_subject(self) -> dict[str, list[Check]]:
        subjects = dict.fromkeys(c.subject for c in self.checks or ())
        return {subject: [c for c in self.checks or () if c.subject == subject] for subject in subjects}

    @property
    def unsettled(self) -> bool:
        """Whether a check is neither exact nor bounded, so that its reason should be seen at once."""
        return any(c.verdict not in (Verdict.EXACT, Verdict.BOUNDED) for c in self.checks or ())

    @property
    def damaged(self) -> list[str]:
        return [name for name, state in self.states.items() if state != "as recorded"]

    def files(self, artifact: str) -> list[str]:
        return belonging(self.states, artifact)

    def others(self) -> list[str]:
        """Files that belong to no artifact."""
        taken = {n for artifact in self.receipt.artifacts.values() for n in self.files(artifact)}
        return [n for n in self.states if n not in taken]

    def size(self, names: Iterable[str]) -> int:
        return sum(self.receipt.files[n].bytes for n in names)


@dataclass(frozen=True)
class Page:
    """Everything the template shows."""

    tunings: Sequence[Tuning]
    export: Export | None
    scores: Sequence[Score]

    @property
    def matches_by_label(self) -> dict[str, list[Score]]:
        """The scores of exact match."""
        shown = [s for s in self.scores if s.matched is not None]
        return {label: [s for s in shown if s.label == label] for label in dict.fromkeys(s.label for s in shown)}

    @property
    def measured(self) -> bool:
        """Whether any score has more than exact match."""
        return any(True for score in self.scores for _ in score.figures())

    @property
    def layers(self) -> dict[str, Mapping[str, Movement]]:
        """Movement per tensor of each run that has any, or of the exported model where no run was given."""
        shown = {t.label: t.run.layers for t in self.tunings}
        if not shown and self.export:
            shown = {"exported model": self.export.receipt.layers}
        return {label: layers for label, layers in shown.items() if any(m.weights for m in layers.values())}

    @property
    def missing(self) -> list[str]:
        """What was not given, in words."""
        given = {
            "a run folder (loss curves)": self.tunings,
            "a dist folder (artifacts, verification)": self.export,
            "score files (what eval found)": self.scores,
        }
        names = [name for name, value in given.items() if not value]
        names += [f"{LOG} of {t.label}" for t in self.tunings if t.log is None]
        return names + (["verify.json (run: edgeqaf verify)"] if self.export and self.export.checks is None else [])


def collect(folders: Sequence[Path], scores: Sequence[Path]) -> Page:
    """Read run folders (any number), a dist folder (at most one) and score files.

    Raises Refused for a file that is not what it must be, UsageError for two dist folders.
    """
    kinds = [inputs.kind(folder) for folder in folders]
    dists = [f for f, k in zip(folders, kinds, strict=True) if k == "dist"]
    if len(dists) > 1:
        raise UsageError(f"{dists[0]} and {dists[1]} are both dist folders", "a report is about one; make one for each")
    runs = [f for f, k in zip(folders, kinds, strict=True) if k == "run"]
    return Page(_tunings(runs), _export(dists[0]) if dists else None, [read_score(path) for path in scores])


def _tunings(folders: Sequence[Path]) -> list[Tuning]:
    runs = [inputs.read_run(folder) for folder in folders]
    methods = [run.method for run in runs]
    labels = [m if methods.count(m) == 1 else f"{m} {methods[: i + 1].count(m)}" for i, m in enumerate(methods)]
    return [
        Tuning(label, run, inputs.read_log(folder), inputs.read_options(folder))
        for label, run, folder in zip(labels, runs, folders, strict=True)
    ]


def _export(folder: Path) -> Export:
    receipt = inputs.read_receipt(folder)
    verification = inputs.read_verification(folder, receipt)
    return Export(receipt, inputs.file_states(folder, receipt), verification.checks if verification else None)
