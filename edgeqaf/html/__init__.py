"""The self-contained HTML report: read folders, say in words what they show, render one page.

`collect` turns files into values, `render` turns values into text (`edgeqaf.html.frame`). The same folders give the
same bytes.
"""

from collections.abc import Sequence
from enum import Enum

from edgeqaf.html import plots
from edgeqaf.html.frame import SYMBOLS, fill
from edgeqaf.html.page import Export, Page, Tuning, collect
from edgeqaf.movement import Movement
from edgeqaf.report import Check, Verdict, VerificationReport

__all__ = ["SYMBOLS", "Tone", "collect", "conclude", "render"]


class Tone(Enum):
    """What the summary amounts to: proven, contradicted, or not settled."""

    PROVEN = "proven"
    FAILED = "failed"
    OPEN = "open"


def render(page: Page) -> str:
    """The page as HTML text."""
    tone, sentence = conclude(page)
    shares = [m.share for layers in page.layers.values() for m in layers.values()]
    return fill(
        "report.html.j2", {"loss": _loss, "place": plots.place},
        page=page, tone=tone, sentence=sentence, curves=_curves(page), top=plots.nice_top(shares), plots=plots,
        total=lambda layers: sum(layers.values(), Movement()), percent=percent,
    )  # fmt: skip


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
        name = export.damaged[0]
        return Tone.FAILED, f"{what}: the file {name}, held against the receipt: {export.states[name]}."
    open_question = _open_question(export)
    if open_question:
        return Tone.OPEN, f"{what}, exported in {where}; {open_question}."
    exact, absent = runtimes(checks, receipt.weights())
    origin = "tuned" if receipt.parent else "chosen"
    asides = [f" Absent, so not checked: {', '.join(absent)}."] if absent else []
    if page.tunings and not any(t.is_in(receipt) for t in page.tunings):
        asides.append(" No run given here is the one that tuned them.")
    return Tone.PROVEN, (
        f"{what}: the integers {origin} are, bit for bit, the integers in {where}, "
        f"checked in {count(len(exact), 'runtime')}.{''.join(asides)}"
    )


def runtimes(checks: Sequence[Check], weights: int) -> tuple[list[str], list[str]]:
    """Runtimes that decoded (R1) and multiplied (R2) all ``weights`` weights exactly; and those that were absent."""
    own: dict[str, list[Check]] = {}
    for check in checks:
        if check.rung in ("R1", "R2"):
            own.setdefault(check.subject.partition(" ")[0], []).append(check)
    exact = [
        name
        for name, found in own.items()
        if {c.rung for c in found} == {"R1", "R2"}
        and all(c.verdict is Verdict.EXACT and c.compared >= weights for c in found)
    ]
    return sorted(exact), sorted(n for n, found in own.items() if any(c.verdict is Verdict.ABSENT for c in found))


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
    read = {c.subject for c in export.checks if c.rung == "R0" and c.verdict is Verdict.EXACT and c.compared}
    unread = sorted(export.receipt.artifacts.keys() - read)
    if unread or not export.receipt.artifacts:
        return f"no check of the file itself (R0) for {', '.join(unread) or 'any'}"
    exact, _ = runtimes(export.checks, export.receipt.weights())
    return None if exact else "no runtime has checked every weight"


def _about_runs(tunings: Sequence[Tuning]) -> str:
    if not tunings:
        return "Scores only: no run and no exported artifact was given."
    parts = []
    for t in tunings:
        m = t.moved
        moved = f", {percent(m.moved, m.weights)} of {m.weights:,} codes moved" if m.weights else ""
        held_out = f", held-out loss {_loss(t.run.held_out_loss)}" if t.run.held_out_loss is not None else ""
        parts.append(f"{t.label}: {count(t.run.steps, 'step')}{moved}{held_out}")
    return f"{'; '.join(parts)}. No exported artifact was given."


def _curves(page: Page) -> list[plots.Curve]:
    """One curve for each run, those without a log empty, so that colours keep their run."""
    logs = [(t.label, t.log) for t in page.tunings]
    return [plots.Curve(label, log.training if log else (), log.held_out if log else ()) for label, log in logs]


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
