"""Verify a dist folder: every artifact against the receipt, every runtime against the integers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.console import Advance, table
from edgeqaf.digest import FLOAT32, file_sha256, merkle_root
from edgeqaf.dist import Dist
from edgeqaf.errors import Refused, UsageError
from edgeqaf.protocols import Artifact, RuntimeOptions, fitting
from edgeqaf.report import Check, Verdict, VerificationReport
from edgeqaf.runs import threads as processors
from runtime_tests import ladder
from runtime_tests.expected import Quantized
from runtime_tests.golden.watch import Watch
from runtime_tests.job import Job, Outcome

AT_ONCE = 2  # configurations that climb side by side, each in its own process, where there are processors for it


def verify(
    dist: Dist,
    runtimes: Sequence[str],
    options: RuntimeOptions,
    advance: Advance,
    against: QModel | None = None,
    watch: Watch | None = None,
    climb: Callable[[Job], Outcome] = ladder.run,
    prompts: bool = True,
) -> VerificationReport:
    """R0 for each artifact; then R1 to R4 in each runtime that reads it.

    against: the model to hold the runtimes against; by default the artifact itself, which R0 ties to the receipt.
    watch:   what else is made of the climbs; by default nothing.
    climb:   how a job is answered; it is called in threads.
    prompts: whether whole models run, for R3 and R4.
    """
    watch = watch or Watch()
    climbs = _Climbs(dist, runtimes, options, advance, watch, climb, prompts)
    found = (climbs.of(artifact, _expected(artifact, against)) for artifact in dist.artifacts)
    checks = [_check_files(dist), *watch.of_model()]
    return VerificationReport((*checks, *(check for each in found for check in each)))


class _Climbs:
    """What `verify` does with one artifact after the other.

    PyTorch goes first, as the others' logits are held against its own; it takes bare integers, so it
    runs once for all artifacts that R0 shows to hold the same. Of a program that has but one result PyTorch's
    run comes second, and the others' bits are held against it. The rest run side by side.
    """

    def __init__(
        self, dist: Dist, runtimes: Sequence[str], options: RuntimeOptions, advance: Advance, watch: Watch,
        climb: Callable[[Job], Outcome], prompts: bool,
    ) -> None:  # fmt: skip
        self._receipt, self._digests, self._recorded = dist.receipt, dist.digests, dist.receipt.get("witness")
        self._runtimes, self._options, self._watch = runtimes, options, watch
        self._climb, self._prompts = climb, prompts
        self._reference: dict[str, Outcome] = {}
        self._advance, self._steps = advance, count(1)

    def _done(self, what: str) -> None:
        self._advance(next(self._steps), what)

    def of(self, artifact: Artifact, expected: Quantized) -> Iterator[Check]:
        """All rungs of one artifact."""
        found = artifact.digests()
        file = ladder.check_file(artifact, self._digests, found)
        stated = ladder.check_statements(artifact, self._receipt.get("asked", {}), self._receipt.get("tool", {}))
        yield from (file, *filter(None, (stated,)))
        self._done(f"R0 {artifact.format}")
        root = merkle_root(found)
        if ladder.REFERENCE in self._runtimes and root not in self._reference:
            (job,) = self._jobs(artifact, expected, [ladder.REFERENCE])
            assert isinstance(job, Job)
            first = self._reference[root] = self._climb(job)
            yield from self._watch.of_climb(first, file.wrong)
            if self._recorded and first.logits:
                yield _against_witness(artifact, self._recorded, first)
        self._done(ladder.REFERENCE)
        others = self._jobs(artifact, expected, [name for name in self._runtimes if name != ladder.REFERENCE])
        yield from (job for job in others if isinstance(job, Check))
        logits = self._reference[root].logits if root in self._reference else []
        waiting = [replace(job, reference=logits) for job in others if isinstance(job, Job)]
        for outcome in _climbed(waiting, self._climb):
            yield from self._watch.of_climb(outcome, file.wrong)
            self._done(outcome.checks[0].subject)

    def _jobs(self, artifact: Artifact, expected: Quantized, names: Sequence[str]) -> list[Job | Check]:
        def asked(job: Job) -> Job:
            return ladder.with_prompts(job, self._recorded, self._watch.observes) if self._prompts else job

        found = ladder.jobs(artifact, expected, names, self._options)
        return [asked(job) if isinstance(job, Job) else job for job in found]


def _climbed(waiting: Sequence[Job], climb: Callable[[Job], Outcome]) -> Iterator[Outcome]:
    """The job that decides on the bits of the others, if there is one; then the rest, as many at a time as fit."""
    decider = next((job for job in waiting if job.runtime == ladder.PROGRAM), None)
    if decider is not None:
        decided = climb(decider)
        yield decided
        waiting = [replace(job, bits=decided.logits) for job in waiting if job is not decider]
    each = max((job.options.threads for job in waiting), default=1)
    with ThreadPoolExecutor(max(1, min(AT_ONCE, processors() // each))) as pool:
        yield from pool.map(climb, waiting)


def _expected(artifact: Artifact, named: QModel | None) -> Quantized:
    """What the runtimes are held against; Refused if the model the user names is of another shape."""
    if named is None:
        return Quantized.of(artifact)
    own, theirs = artifact.outline(), named.outline()
    for name, (grid, shape) in sorted(own.items()):
        if grid != FLOAT32 and theirs.get(name) != (grid, shape):
            raise Refused(
                f"the model to verify against has no {name} of shape {list(shape)} on {grid}",
                "pass the model folder that was exported: --against merged",
            )
    return Quantized(named.tensors, {name: own[name] for name in own})


def _check_files(dist: Dist) -> Check:
    """R0: every file of the dist folder has the SHA-256 that the receipt names."""
    wrong = sorted(
        path for path, file in dist.receipt["files"].items() if file_sha256(dist.folder / path) != file["sha256"]
    )
    size = sum(file["bytes"] for file in dist.receipt["files"].values())
    verdict = Verdict.DIFFERENT if wrong else Verdict.EXACT
    detail = f"another SHA-256: {', '.join(wrong)}" if wrong else f"SHA-256 of {len(dist.receipt['files'])} files"
    return Check("R0", "files", verdict, 0, size, len(wrong), "bytes", detail, wrong=tuple(wrong))


def steps(dist: Dist, runtimes: Sequence[str]) -> int:
    """How many times `verify` will advance at most."""
    found = [plugins.find("runtimes", name) for name in runtimes if name != ladder.REFERENCE]
    return sum(2 + sum(len(fitting(r, a)) for r in found) for a in dist.artifacts)


def _against_witness(artifact: Artifact, recorded: Mapping[str, Any], outcome: Outcome) -> Check:
    """R4: PyTorch's logits from this file's integers against those of the training forward, before the merge."""
    subject = f"{ladder.REFERENCE} before and after merge, on {artifact.format}"
    prompts, values = len(recorded["tokens"]), recorded["values"]
    if dict(outcome.key) != recorded["key"]:
        was = ", ".join(f"{k} {v}" for k, v in recorded["key"].items())
        return Check(
            "R4", subject, Verdict.ABSENT, prompts, detail=f"recorded with {was}: nothing to compare with here"
        )
    same = outcome.digest == recorded["logits"]
    verdict = Verdict.EXACT if same else Verdict.DIFFERENT
    detail = "" if same else f"logits digest {outcome.digest[:16]}, recorded {recorded['logits'][:16]}"
    return Check("R4", subject, verdict, prompts, values, 0 if same else values, "logits", detail)


def parse_runtimes(text: str | None, elsewhere: bool) -> list[str]:
    """Registry keys named by ``--runtime a,b``; when it is not given all of them, those elsewhere if asked for."""
    if text is None:
        return plugins.names("runtimes") if elsewhere else ladder.at_home()
    found = [plugins.resolve("runtimes", name.strip()) for name in text.split(",") if name.strip()]
    if not found:
        raise UsageError("--runtime names no runtime", f"known: {', '.join(plugins.names('runtimes'))}")
    return found


def show(report: VerificationReport) -> None:
    """The report as a table: one line a check, the verdict word, the counts, the reason."""
    rows = []
    for c in report.checks:
        counts = f"{c.compared:,} {c.unit}" if c.compared else "-"
        rows.append((c.rung, c.subject, c.verdict.value, c.tensors or "-", counts, c.reason))
    table("Verification ladder", ("rung", "who", "verdict", "tensors", "compared", "detail"), rows)
