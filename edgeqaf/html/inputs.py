"""What a report is made of: run folders, a dist folder (and scores, see scores.py); read, validated, never trusted."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from edgeqaf.checkpoint import MANIFEST, read_manifest
from edgeqaf.digest import file_sha256
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import fault, parse, read_json
from edgeqaf.movement import Movement
from edgeqaf.receipt import require_sound
from edgeqaf.report import GOLDEN, RUNGS, Check, Verdict

LOG, VERIFICATION = "log.jsonl", "verify.json"
LONGEST_LINE = 2**16  # bytes; a line of the log has a few hundred
HUGE = 1e30  # a loss beyond this is divergence, and has no place on an axis

Count = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Point = tuple[int, float]


@dataclass(frozen=True)
class Run:
    """The part of a run folder's ``edgeqaf.json`` that a report shows. folded: digest per tuned tensor."""

    method: str
    steps: Count
    training_loss: float | None = None
    held_out_loss: float | None = None
    parent: Digest | None = None
    lossless: bool = True
    layers: dict[str, Movement] = field(default_factory=dict)
    folded: dict[str, Digest] = field(default_factory=dict)


@dataclass(frozen=True)
class Log:
    """(step, loss) in order of steps, and how many losses were not finite."""

    training: tuple[Point, ...]
    held_out: tuple[Point, ...]
    not_finite: int


@dataclass(frozen=True)
class Stored:
    """A tensor in the receipt."""

    grid: str
    shape: tuple[Count, ...]
    digest: Digest


@dataclass(frozen=True)
class Recorded:
    """A file in the receipt."""

    sha256: Digest
    bytes: Count


@dataclass(frozen=True)
class Receipt:
    """The part of a dist folder's ``edgeqaf.json`` that a report shows."""

    root: Digest
    tensors: dict[str, Stored]
    artifacts: dict[str, str]
    files: dict[str, Recorded]
    parent: Digest | None = None
    layers: dict[str, Movement] = field(default_factory=dict)

    def weights(self) -> int:
        """Quantized weights in all."""
        return sum(prod(t.shape) for t in self.tensors.values() if t.grid != "float32")

    def grids(self) -> list[str]:
        return sorted({t.grid for t in self.tensors.values()} - {"float32"})

    def kept_float(self) -> list[str]:
        """Names of matrices that stayed float32."""
        return sorted(n for n, t in self.tensors.items() if t.grid == "float32" and len(t.shape) > 1)


@dataclass(frozen=True)
class Verification:
    """A ``verify.json``; whether it passed is counted from its checks."""

    checks: tuple[Check, ...]
    root: Digest | None = None


@dataclass(frozen=True)
class _LogLine:
    step: Count
    loss: float | None = None
    eval_loss: float | None = None


@dataclass(frozen=True)
class _Options:
    options: dict[str, str | int | float | bool | None] = field(default_factory=dict)


def kind(folder: Path) -> str:
    """Return "run" or "dist"; raises Refused for a folder that is neither."""
    found = read_manifest(folder).get("kind")
    if found not in ("run", "dist"):
        raise Refused(f"{folder} is a {found} folder", "pass folders made by finetune (runs) and export (dist)")
    return str(found)


def read_run(folder: Path) -> Run:
    """The manifest of a run; raises Refused for counts that cannot be."""
    run = parse(Run, folder / MANIFEST)
    _require_plausible(run.layers, folder / MANIFEST)
    return run


def read_options(folder: Path) -> Mapping[str, Any]:
    """The options of a run's method."""
    return parse(_Options, folder / MANIFEST).options


def read_log(folder: Path) -> Log | None:
    """The curves of a run, None if it kept no log. A step written twice, by a resumed run, counts once.

    Raises Refused with file and line for a line that is no log entry.
    """
    if not (folder / LOG).is_file():
        return None
    lines = list(_log_lines(folder / LOG))
    training = {line.step: line.loss for line in lines if line.loss is not None}
    held_out = {line.step: line.eval_loss for line in lines if line.eval_loss is not None}
    shown = [
        tuple((s, v) for s, v in sorted(c.items()) if math.isfinite(v) and abs(v) < HUGE) for c in (training, held_out)
    ]
    return Log(shown[0], shown[1], len(training) + len(held_out) - len(shown[0]) - len(shown[1]))


def read_receipt(folder: Path) -> Receipt:
    """The receipt, its root recomputed from its digests; raises Refused where they disagree."""
    path = folder / MANIFEST
    receipt = parse(Receipt, path)
    _require_plausible(receipt.layers, path)
    require_sound(read_json(path), path)
    return receipt


def file_states(folder: Path, receipt: Receipt) -> dict[str, str]:
    """Whether each file of the receipt is on disk "as recorded", "differs" or is "missing"."""

    def state(name: str, recorded: Recorded) -> str:
        path = (folder / name).resolve()
        if not path.is_file() or not path.is_relative_to(folder.resolve()):
            return "missing"
        return "as recorded" if file_sha256(path) == recorded.sha256 else "differs"

    return {name: state(name, recorded) for name, recorded in sorted(receipt.files.items())}


def read_verification(folder: Path, receipt: Receipt) -> Verification | None:
    """What `edgeqaf verify` found last, None if it was not run; Refused if it is of other integers."""
    path = folder / VERIFICATION
    if not path.is_file():
        return None
    found = parse(Verification, path)
    for c in found.checks:
        if (
            c.rung not in (*RUNGS, GOLDEN)
            or min(c.differing, c.compared) < 0
            or (c.differing and c.verdict is Verdict.EXACT)
        ):
            raise Refused(
                f"{path}: {c.rung} {c.subject} {c.verdict.value}, {c.differing} of {c.compared} differ: impossible",
                "the file is damaged; run: edgeqaf verify",
            )
    if found.root not in (None, receipt.root):
        raise Refused(
            f"{path} is about root {found.root[:12]}, this folder is {receipt.root[:12]}", "run: edgeqaf verify"
        )
    return found


def _log_lines(path: Path) -> Iterator[_LogLine]:
    adapter = TypeAdapter(_LogLine)
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
            if not line.strip():
                continue
            try:
                yield adapter.validate_json(line, strict=True)
            except ValidationError as error:
                raise Refused(
                    f"{path}, line {number}: {fault(error)}", "the log is damaged; remove that line, or train again"
                ) from None


def _require_plausible(layers: Mapping[str, Movement], path: Path) -> None:
    for name, m in layers.items():
        parts = (m.moved, m.moved_far, m.saturated, m.saturated_before)
        if not (
            0 <= m.weights < 2**63 and all(0 <= p <= m.weights for p in parts) and 0 <= m.zeros_moved <= m.zeros < 2**63
        ):
            raise Refused(
                f"{path}: {name} counts {m.moved} moved of {m.weights} weights", "the file is damaged; make it again"
            )
