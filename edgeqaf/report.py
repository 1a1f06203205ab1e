"""Findings of the verification ladder, as values: what was compared, how much of it differs, where first.

Two words only. *Exact* means equal bits (minus zero counts as zero). *Bounded* means a difference
whose cause is named. A runtime that is not there is *absent*, which is never a pass.
"""

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNGS = ("R0", "R1", "R2", "R3", "R4")
GOLDEN = "golden"  # beside the rungs: what was computed once, held against what is computed now
SETTINGS = "settings"  # likewise: whether logits depend on threads, and on how many tokens are computed at once


class Verdict(Enum):
    """The outcome of one check, best first."""

    EXACT = "exact"
    BOUNDED = "bounded"
    DIFFERENT = "different"
    REFUSED = "refused"
    ABSENT = "absent"


@dataclass(frozen=True)
class Difference:
    """The first element that differs: where, and both bit patterns (or digests) in hex."""

    tensor: str
    index: tuple[int, ...]
    expected: str
    found: str

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return f"{self.tensor}{place}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    rung, subject: "R0".."R4", "golden" or "settings", and who was asked, e.g. "onnxruntime fused level 4".
    tensors:       quantized tensors (R0: all tensors; R4: prompts) looked at.
    compared, differing: numbers of values; unit says of what.
    detail:        version, cause of a bound, or why something is absent.
    wrong:         names of the tensors that differ.
    """

    rung: str
    subject: str
    verdict: Verdict
    tensors: int = 0
    compared: int = 0
    differing: int = 0
    unit: str = "weights"
    detail: str = ""
    first: Difference | None = None
    wrong: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """How much differs, where first, and the detail, in one line."""
        return "; ".join(filter(None, (f"{self.differing:,} differ: {self.first}" if self.first else "", self.detail)))


@dataclass(frozen=True)
class VerificationReport:
    """All checks of one `edgeqaf verify`."""

    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def failures(self) -> list[Check]:
        return [c for c in self.checks if c.verdict in (Verdict.DIFFERENT, Verdict.REFUSED)]

    @property
    def absent(self) -> list[Check]:
        return [c for c in self.checks if c.verdict is Verdict.ABSENT]

    def as_json(self) -> dict[str, Any]:
        checks = [asdict(c) | {"verdict": c.verdict.value} for c in self.checks]
        return {"passed": not self.failures and len(self.absent) < len(self.checks), "checks": checks}


def compare_bits(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where two float32 arrays differ in bits; minus zero equals zero, NaN never equals anything.

    A shape that disagrees counts as different everywhere.
    """
    if expected.shape != found.shape:
        return np.ones(expected.shape, bool)
    a, b = (np.asarray(x, np.float32) for x in (expected, found))
    different: NDArray[np.bool_] = a != b  # IEEE 754's equality of one type is just that
    return different


def first_difference(
    tensor: str, expected: NDArray[np.float32], found: NDArray[np.float32], different: NDArray[np.bool_]
) -> Difference | None:
    """The first differing element in row-major order, or None."""
    if not different.any():
        return None
    if expected.shape != found.shape:
        return Difference(tensor, (), f"shape {expected.shape}", f"shape {found.shape}")
    index = tuple(int(i[0]) for i in np.nonzero(different))
    return Difference(tensor, index, _bits(expected[index]), _bits(found[index]))


def _bits(value: np.float32) -> str:
    return f"{float(value)!r} (0x{int(np.float32(value).view(np.uint32)):08x})"
