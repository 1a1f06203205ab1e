"""What a report must have reached: a difference, a missing rung or an absent runtime becomes an error."""

from collections.abc import Sequence

from edgeqaf import plugins
from edgeqaf.errors import RuntimeAbsent, VerificationFailed
from edgeqaf.report import GOLDEN, RUNGS, Check, Verdict, VerificationReport

WRONG = "the file or the runtime is not what the receipt says: export again, or see the table for which tensor"
CHANGED = "if the change is meant, record it: edgeqaf verify DIST --record FILE --force"


def require(report: VerificationReport, wanted: Sequence[str]) -> None:
    """Turn what is missing into a failure: rungs ("R2"), "golden", or runtimes ("llama.cpp") that must be there.

    Raises RuntimeAbsent for an absent runtime, VerificationFailed for a difference or a missing rung.
    """
    if report.failures:
        worst = next((c for c in report.failures if c.first), report.failures[0])  # one that names a tensor
        golden = worst.rung == GOLDEN
        detail = str(worst.first) if worst.first and not golden else worst.detail
        raise VerificationFailed(
            f"{len(report.failures)} of {len(report.checks)} checks failed; {worst.rung} {worst.subject}: {detail}",
            CHANGED if golden else WRONG,
        )
    for item in wanted:
        if item.upper() in RUNGS:
            _require_rung(report, item.upper())
            continue
        if item.lower() == GOLDEN:
            _require_golden(report)
            continue
        name = plugins.resolve("runtimes", item)
        absent = [c for c in report.absent if c.subject.split()[0] == name]
        if absent or not any(c.subject.split()[0] == name for c in report.checks):
            detail = absent[0].detail if absent else "nothing in this folder is for it, or --runtime left it out"
            raise RuntimeAbsent(f"{name} is required but absent: {detail}", "install it, or drop it from --require")


def _require_rung(report: VerificationReport, rung: str) -> None:
    """Every runtime must have reached the rung on every artifact it reads, in some configuration."""
    if rung == "R0":
        return  # always run, and a difference has failed already
    accepted = (Verdict.EXACT, Verdict.BOUNDED) if rung == "R4" else (Verdict.EXACT,)
    climbers = {_who(c): c for c in report.checks if c.rung == "R1"}
    reached = {_who(c) for c in report.checks if c.rung == rung and c.verdict in accepted}
    missing = sorted(climbers.keys() - reached)
    if missing:
        check = climbers[missing[0]]
        if check.verdict is Verdict.ABSENT:
            raise RuntimeAbsent(
                f"{rung} is required, but {check.subject} is absent: {check.detail}",
                "install it, or name the runtimes to check with --runtime",
            )
        raise VerificationFailed(f"{rung} is required, but {check.subject} did not reach it", "see the table for why")
    if not reached:
        raise VerificationFailed(f"{rung} is required, but no runtime was asked for it", f"rungs: {', '.join(RUNGS)}")


def _require_golden(report: VerificationReport) -> None:
    """Every configuration that climbed must have a golden, and every runtime must have climbed in one."""
    unknown = [c for c in report.absent if c.rung == GOLDEN]
    if unknown:
        raise RuntimeAbsent(
            f"{GOLDEN} is required; {unknown[0].subject}: {unknown[0].detail}",
            "record it under these circumstances: edgeqaf verify DIST --record FILE",
        )
    _require_rung(report, GOLDEN)


def _who(check: Check) -> tuple[str, str]:
    """Runtime and artifact format of a check, from its subject ("onnxruntime off on onnx")."""
    words = check.subject.split()
    return words[0], words[-1]
