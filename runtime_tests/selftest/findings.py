"""What came out: which rung saw each defect, whether what is sound was accused, and what peers would have seen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeqaf.console import say, table
from runtime_tests.selftest.peers import TOLERANCES
from runtime_tests.tally import listed

FILES = "files"  # the SHA-256 of each file, which sees every change and says nothing of what it means
RUNGS = ("R0 tensors", "R0 statements", "R1", "R2", "R3", "R4")


@dataclass(frozen=True)
class Finding:
    """One defect.

    tensors: that it was seeded in, or what else of the artifact.
    rungs:   of `RUNGS` those that looked, and whether every runtime that did so named the tensor.
    by:      the rung that saw it first, in its own words. blind: who looked and did not see it.
    peers:   tolerance -> whether it tells outputs apart; empty where there are none. compared: of what.
    """

    kind: str
    family: str
    subject: str
    tensors: tuple[str, ...]
    rungs: Mapping[str, bool]
    by: str = ""
    blind: tuple[str, ...] = ()
    peers: Mapping[str, bool] = field(default_factory=dict)
    compared: str = ""

    @property
    def first(self) -> str:
        """The first rung that saw it, file hashes apart; "" if it escaped."""
        return next((rung for rung in RUNGS if self.rungs.get(rung)), "")


@dataclass(frozen=True)
class Control:
    """What is sound, looked at: wrong has what was accused. noise: tolerances that a sound product does not meet,
    held against PyTorch's float32 product of the same weights."""

    subject: str
    who: str
    wrong: tuple[str, ...] = ()
    noise: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """A kind or a runtime that could not be tried here, and why; never counted as caught."""

    subject: str
    what: str
    why: str


Event = Finding | Control | Missing


@dataclass(frozen=True)
class Report:
    """All that was found, in order."""

    seed: int
    findings: Sequence[Finding]
    controls: Sequence[Control]
    missing: Sequence[Missing]

    @staticmethod
    def of(seed: int, events: Iterable[Event]) -> "Report":
        every = list(events)
        return Report(
            seed,
            [e for e in every if isinstance(e, Finding)],
            [e for e in every if isinstance(e, Control)],
            [e for e in every if isinstance(e, Missing)],
        )

    @property
    def escaped(self) -> list[Finding]:
        return [f for f in self.findings if not f.first]

    @property
    def accused(self) -> list[Control]:
        """False alarms."""
        return [c for c in self.controls if c.wrong]

    @property
    def passed(self) -> bool:
        return bool(self.findings) and not self.escaped and not self.accused

    def as_json(self) -> dict[str, Any]:
        counts = {"defects": len(self.findings), "caught": len(self.findings) - len(self.escaped)}
        return {
            "passed": self.passed, "seed": self.seed, **counts, "false alarms": len(self.accused),
            "peers": {name: list(share(self.findings, name)) for name in TOLERANCES},
            "peers' false alarms": {name: list(_noise(self.controls, name)) for name in TOLERANCES},
            "findings": [asdict(f) | {"first": f.first} for f in self.findings],
            "controls": [asdict(c) for c in self.controls],
            "missing": [asdict(m) for m in self.missing],
        }  # fmt: skip

    def show(self) -> None:
        """One line a kind: how many, how many were caught, and what each rung and each tolerance sees of them."""
        by_kind: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_kind.setdefault(finding.kind, []).append(finding)
        rows = [(kind, *_cells(found)) for kind, found in by_kind.items()]
        heads = (name.replace(" ", "\n") for name in (*RUNGS, *TOLERANCES))
        table("Self-test", ("defect", "seeded", "caught", *heads), [*rows, ("all", *_cells(self.findings))])
        of = [(name, *share(self.findings, name), *_noise(self.controls, name)) for name in TOLERANCES]
        table(
            "Tolerances of other projects, on the same outputs",
            ("tolerance", "sees", "of defects", "takes for damaged", "of sound products"), of,
        )  # fmt: skip
        for what in dict.fromkeys(m.what for m in self.missing):
            same = [m for m in self.missing if m.what == what]
            say(f"not tried: {what} ({listed([m.subject for m in same])}): {same[0].why}")
        caught = len(self.findings) - len(self.escaped)
        say(
            f"{caught} of {len(self.findings)} defects caught, {len(self.accused)} of {len(self.controls)} false alarms"
        )


def share(findings: Sequence[Finding], tolerance: str) -> tuple[int, int]:
    """How many defects a tolerance sees, of those with outputs to compare."""
    compared = [f for f in findings if f.peers]
    return sum(f.peers[tolerance] for f in compared), len(compared)


def _noise(controls: Sequence[Control], tolerance: str) -> tuple[int, int]:
    """Of how many sound products a tolerance is not met, and of how many."""
    compared = [c for c in controls if c.noise]
    return sum(c.noise[tolerance] for c in compared), len(compared)


def _cells(found: Sequence[Finding]) -> list[str]:
    """Counts, then of each rung and each tolerance the share that it sees of what it could."""
    looked = [[f.rungs[rung] for f in found if rung in f.rungs] for rung in RUNGS]
    told = [share(found, name) for name in TOLERANCES]
    seen = [_share(sum(each), len(each)) for each in looked]
    return [str(len(found)), str(sum(bool(f.first) for f in found)), *seen, *(_share(*each) for each in told)]


def _share(part: int, whole: int) -> str:
    return "-" if not whole else "all" if part == whole else f"{100 * part // whole}%"
