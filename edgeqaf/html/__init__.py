"""The self-contained HTML report: read folders, say in words what they show, render one page.

`collect` turns files into values, `render` turns values into text. The page runs nothing and loads
nothing; whatever came from a file is escaped. The same folders give the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeqaf import __version__
from edgeqaf.errors import UsageError
from edgeqaf.html import inputs, plots
from edgeqaf.html.inputs import LOG, Log, Receipt, Run, Score
from edgeqaf.movement import Movement
from edgeqaf.report import RUNGS, Check, VerificationReport, Verdict

SYMBOLS = {
    Verdict.EXACT: "=", Verdict.BOUNDED: "≈", Verdict.DIFFERENT: "≠", Verdict.REFUSED: "✕", Verdict.ABSENT: "–",
}  # fmt: skip
RUNG_NAMES = dict(zip(RUNGS, ("file", "weights", "kernels", "layers", "logits"), strict=True))


class Tone(Enum):
    """What the summary amounts to: proven, contradicted, or not settled."""

    PROVEN = "proven"
    FAILED = "failed"
    OPEN = "open"


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
        return [n for n in self.states if n == artifact or n.startswith(f"{artifact}/")]

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
    def sentence(self) -> str:
        return conclude(self)[1]

    @property
    def scores_by_label(self) -> dict[str, list[Score]]:
        labels = dict.fromkeys(s.label for s in self.scores)
        return {label: [s for s in self.scores if s.label == label] for label in labels}

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
            "score files (exact match)": self.scores,
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
    return Page(_tunings(runs), _export(dists[0]) if dists else None, [inputs.read_score(path) for path in scores])


def render(page: Page) -> str:
    """The page as HTML text. Invisible and unpaired characters are replaced, so that no name can disguise itself."""
    environment = Environment(
        loader=PackageLoader("edgeqaf", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": "{:,}".format, "loss": _loss, "place": plots.place}
    tone, sentence = conclude(page)
    shares = [m.share for layers in page.layers.values() for m in layers.values()]
    text = environment.get_template("report.html.j2").render(
        page=page, tone=tone, sentence=sentence, curves=_curves(page), top=plots.nice_top(shares), plots=plots,
        percent=percent, total=lambda layers: sum(layers.values(), Movement()), SYMBOLS=SYMBOLS, RUNG_NAMES=RUNG_NAMES, version=__version__,
    )  # fmt: skip
    return text.translate({ord(c): 0xFFFD for c in set(text) if not (c.isprintable() or c == "\n")})


def conclude(page: Page) -> tuple[Tone, str]:
    """The verdict in one sentence. Only checks that were made and found exact make it a proof."""
    export = page.export
    if export is None:
        return Tone.OPEN, _about_runs(page.tunings)
    receipt, checks = export.receipt, export.checks or ()
    what = f"{receipt.weights():,} weights on {', '.join(receipt.grids()) or 'no grid'}"
    where = count(len(receipt.artifacts), "artifact")
    failures = VerificationReport(checks).failures
    if failures:
        first = f"the first is {failures[0].rung} {failures[0].subject}"
        return Tone.FAILED, f"{what}: {len(failures)} of {count(len(checks), 'check')} failed; {first}."
    if export.damaged:
        return (
            Tone.FAILED,
            f"{what}: {export.damaged[0]} {export.states[export.damaged[0]]}, compared with the receipt.",
        )
    open_question = _open_question(export)
    if open_question:
        return Tone.OPEN, f"{what}, exported in {where}; {open_question}."
    exact, absent = runtimes(checks)
    origin = "tuned" if receipt.parent else "chosen"
    asides = [f" Absent, so not checked: {', '.join(absent)}."] if absent else []
    if page.tunings and not any(t.is_in(receipt) for t in page.tunings):
        asides.append(" No run given here is the one that tuned them.")
    return Tone.PROVEN, (
        f"{what}: the integers {origin} are, bit for bit, the integers in {where}, "
        f"checked in {count(len(exact), 'runtime')}.{''.join(asides)}"
    )


def runtimes(checks: Sequence[Check]) -> tuple[list[str], list[str]]:
    """Runtimes whose weights (R1) and kernels (R2) were all found exact; and those that were absent."""
    own: dict[str, list[Check]] = {}
    for check in checks:
        if check.rung in ("R1", "R2"):
            own.setdefault(check.subject.partition(" ")[0], []).append(check)
    exact = [n for n, c in own.items() if any(x.rung == "R2" for x in c) and {x.verdict for x in c} == {Verdict.EXACT}]
    return sorted(exact), sorted(n for n, c in own.items() if any(x.verdict is Verdict.ABSENT for x in c))


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: int, whole: int) -> str:
    """One decimal; "0%" and "100%" only where they are exact."""
    if part in (0, whole):
        return "0%" if part == 0 else "100%"
    share = part / whole
    return "<0.1%" if share < 0.0005 else ">99.9%" if share >= 0.9995 else f"{share:.1%}"


def _open_question(export: Export) -> str | None:
    """What keeps a folder without failures from being proven."""
    if export.checks is None:
        return "not verified yet"
    read = {c.subject for c in export.checks if c.rung == "R0" and c.verdict is Verdict.EXACT}
    unread = sorted(export.receipt.artifacts.keys() - read)
    if unread or not export.receipt.artifacts:
        return f"no check of the file itself (R0) for {', '.join(unread) or 'any'}"
    return None if runtimes(export.checks)[0] else "no runtime has checked them"


def _about_runs(tunings: Sequence[Tuning]) -> str:
    if not tunings:
        return "Scores only: no run and no exported artifact was given."
    parts = []
    for t in tunings:
        moved = (
            f", {percent(t.moved.moved, t.moved.weights)} of {t.moved.weights:,} codes moved" if t.moved.weights else ""
        )
        held_out = f", held-out loss {_loss(t.run.held_out_loss)}" if t.run.held_out_loss is not None else ""
        parts.append(f"{t.label}: {count(t.run.steps, 'step')}{moved}{held_out}")
    return f"{'; '.join(parts)}. No exported artifact was given."


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


def _curves(page: Page) -> list[plots.Curve]:
    """One curve for each run, those without a log empty, so that colours keep their run."""
    logs = [(t.label, t.log) for t in page.tunings]
    return [plots.Curve(label, log.training if log else (), log.held_out if log else ()) for label, log in logs]


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
