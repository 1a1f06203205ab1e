"""What each climb found, kept on disk: a run that was stopped goes on, and a second one climbs what is missing.

A climb is found again by all that its answer depends on: the files, the runtime's version, the processor, the
settings, and this program itself. What another day may mend is not kept: a runtime that is absent, or refuses.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import edgeqaf
from edgeqaf import plugins, witness
from edgeqaf.digest import Floats, file_sha256
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.protocols import Artifact, Runtime
from edgeqaf.report import Check, Difference, Verdict
from edgeqaf.staging import staged
from runtime_tests import ladder
from runtime_tests.golden.isa import machine
from runtime_tests.job import Job, Outcome

DECIDE = (ladder.REFERENCE, ladder.PROGRAM)  # whose logits the others are held against, and so are kept
UNHEARD = (  # what has no part in a climb
    "edgeqaf/commands", "edgeqaf/html", "runtime_tests/gpu_receipt", "runtime_tests/matrix", "runtime_tests/runtimes",
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """The answer to a job, and how long it took."""

    outcome: Outcome
    seconds: float


class Store:
    """A folder with a file a climb. fresh: whether what is there counts for nothing."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self._folder = folder
        self._contents: dict[Path, str] = {}
        if fresh:
            for file in [*folder.glob("*.json"), *folder.glob("*.npz")]:
                file.unlink()

    def has(self, job: Job) -> bool:
        """Whether a climb of this job is kept; what it was asked is not looked at yet."""
        return self._file(job).is_file()

    def find(self, job: Job) -> Kept | None:
        """The climb that is kept of a job, if it was asked the same and is sound."""
        file = self._file(job)
        if not file.is_file():
            return None
        try:
            found = read_json(file)
            if found["given"] != _given(job):
                return None
            checks = [_check(values) for values in found["checks"]]
            logits = _load(file.with_suffix(".npz")) if job.runtime in DECIDE else []
            return Kept(Outcome(checks, logits, found["logits"], found["key"]), found["seconds"])
        except (Refused, KeyError, TypeError, ValueError, OSError):
            return None  # spoilt: to be climbed again

    def keep(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """Write a climb down, all or nothing; one in which a runtime was absent, or refused at once, is not."""
        if outcome.checks[0].verdict in (Verdict.ABSENT, Verdict.REFUSED):
            return
        file = self._file(job)
        if job.runtime in DECIDE:
            with staged(file.with_suffix(".npz"), force=True) as part, part.open("wb") as to:
                np.savez(to, *outcome.logits)
        checks = [asdict(c) | {"verdict": c.verdict.value} for c in outcome.checks]
        with staged(file, force=True) as part:
            write_json(part, {
                **self._identity(job), "given": _given(job), "checks": checks, "logits": outcome.digest,
                "key": dict(outcome.key), "seconds": round(seconds, 1),
            })  # fmt: skip

    def _file(self, job: Job) -> Path:
        text = json.dumps(self._identity(job), sort_keys=True)
        return self._folder / f"{job.runtime}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def _identity(self, job: Job) -> dict[str, Any]:
        """All on which the answer depends that is known before anything is computed."""
        available = _available(job)
        return {
            "format": 1, "artifact": job.artifact.format, "content": self._content(job.artifact),
            "runtime": job.runtime, "configuration": asdict(job.configuration) | {
                "offset_form": job.configuration.offset_form.name
            },
            "version": available.version, "isa": available.isa, "machine": machine(), "processor": witness.processor(),
            "threads": job.options.threads, "edgeqaf": edgeqaf.__version__, "code": _code(job.runtime),
        }  # fmt: skip

    def _content(self, artifact: Artifact) -> str:
        """One digest of every file of an artifact and of its reference folder."""
        if artifact.path not in self._contents:
            self._contents[artifact.path] = _content(artifact)
        return self._contents[artifact.path]


def climbed(store: Store, job: Job) -> tuple[Kept, bool]:
    """A job's answer, out of the store or newly made and kept there; and whether it is new."""
    kept = store.find(job)
    if kept is not None:
        return kept, False
    started = time.monotonic()
    outcome = ladder.run(replace(job, varied=True))
    seconds = time.monotonic() - started
    store.keep(job, outcome, seconds)
    return Kept(outcome, seconds), True


def _available(job: Job) -> Any:
    runtime: Runtime = plugins.find("runtimes", job.runtime)
    return runtime.availability(job.options)


def _given(job: Job) -> str:
    """Digest of what a job is asked and held against."""
    total = hashlib.sha256(json.dumps([[list(map(int, t)) for t in job.tokens], list(job.texts)]).encode())
    for logits in (job.reference, job.bits):
        total.update(f"{len(logits)}:{witness.digest(list(logits))}".encode())
    return total.hexdigest()


def _content(artifact: Artifact) -> str:
    """Of a split GGUF file every part counts: whatever begins with the same name."""
    stem = artifact.path.name.partition("-00001-of-")[0]
    roots = [p for p in artifact.path.parent.iterdir() if p.name.startswith(stem)] if artifact.path.is_file() else []
    files = sorted(
        f
        for root in (*roots, artifact.path, artifact.reference)
        for f in ([root] if root.is_file() else root.rglob("*"))
    )
    total = hashlib.sha256()
    for file in dict.fromkeys(f for f in files if f.is_file()):
        total.update(f"{file.relative_to(artifact.path.parent)}\0{file_sha256(file)}\0".encode())
    return total.hexdigest()


@cache
def _code(runtime: str) -> str:
    """Digest of this program: what is in no climb is left out, and of the runtimes all others."""
    root = Path(edgeqaf.__file__).resolve().parents[1]
    files = [f for part in ("edgeqaf", "exporters", "runtime_tests") for f in (root / part).rglob("*")]
    names = {str(f.relative_to(root)): f for f in files if f.suffix in (".py", ".mjs")}
    heard = {n for n in names if not n.startswith(UNHEARD)} | {f"runtime_tests/runtimes/{runtime}.py"}
    total = hashlib.sha256()
    for name in sorted(heard & names.keys()):
        total.update(f"{name}\0{file_sha256(names[name])}\0".encode())
    return total.hexdigest()


def _check(values: Mapping[str, Any]) -> Check:
    first = values["first"]
    made = {**values, "verdict": Verdict(values["verdict"]), "wrong": tuple(values["wrong"])}
    made["first"] = Difference(**{**first, "index": tuple(first["index"])}) if first else None
    return Check(**made)


def _load(file: Path) -> list[Floats]:
    with np.load(file, allow_pickle=False) as arrays:
        return [arrays[name] for name in arrays.files]
