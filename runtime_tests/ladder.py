"""The verification ladder: R0 file, R1 weights, R2 kernels, R3 layers, R4 logits, for one artifact.

R0 needs no runtime. Each configuration of each runtime climbs in a process of its own, because an
inference engine may abort on a file it does not like, and a dead child is a finding, not a crash.
The tensors a runtime is held against are ``expected``: those of the artifact itself once R0 has
tied them to the model's digests, or those of a model folder the user names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from edgeqaf import plugins, witness
from edgeqaf.child import stream
from edgeqaf.errors import EdgeqafError, Refused, RuntimeAbsent
from edgeqaf.protocols import Artifact, Runtime, RuntimeOptions, Session, Stored, fitting
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import Check, Difference, Verdict, compare_bits
from edgeqaf.runs import cuts
from edgeqaf.tokenizer import Tokenizer
from runtime_tests import layers, logits, probes, settings, whole
from runtime_tests.expected import Quantized
from runtime_tests.golden.observation import observe
from runtime_tests.job import Job, Outcome, named, subject
from runtime_tests.probes import culprit
from runtime_tests.tally import Tally, listed

REFERENCE = "torch_cpu"
PROGRAM = "interpreter"  # what decides on the bits of a program that has but one result
AT_ONCE = 2**25  # weights that are decoded at once


def at_home() -> list[str]:
    """The runtimes of this environment: all but those that must be looked for elsewhere."""
    return [name for name in plugins.names("runtimes") if not plugins.find("runtimes", name).elsewhere]


def check_file(artifact: Artifact, digests: Mapping[str, str]) -> Check:
    """R0: the artifact holds exactly the tensors whose digests the receipt names."""
    found = artifact.digests()
    wrong = sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))
    sizes = [prod(shape) for _, shape in artifact.outline().values()]
    first = None
    if wrong:
        short = [(d.get(wrong[0]) or "no such tensor")[:16] for d in (digests, found)]
        first = Difference(wrong[0], (), *short)
    others = f"in {listed(wrong)}" if len(wrong) > 1 else ""
    verdict = Verdict.DIFFERENT if wrong else Verdict.EXACT
    return Check(
        "R0", artifact.format, verdict, len(found), sum(sizes), len(wrong), "weights", others, first, tuple(wrong)
    )


def jobs(
    artifact: Artifact, expected: Mapping[str, QTensor], names: Sequence[str], options: RuntimeOptions
) -> Iterator[Job | Check]:
    """A job for each configuration of each runtime that reads this artifact; a Check for an absent one."""
    for name in names:
        runtime: Runtime = plugins.find("runtimes", name)
        if not fitting(runtime, artifact):
            continue
        availability = runtime.availability(options)
        if availability.version is None:
            yield Check("R1", named(name, "", artifact.format), Verdict.ABSENT, detail=availability.reason)
            continue
        for configuration in fitting(runtime, artifact):
            yield Job(name, configuration, artifact, expected, options)


def with_prompts(job: Job, recorded: Mapping[str, Any] | None, observed: bool = False) -> Job:
    """The job with the witness's prompts to run."""
    tokens = recorded["tokens"] if recorded else witness.prompts(Tokenizer(job.artifact.reference))
    return replace(job, tokens=tokens, texts=witness.PROMPTS, observed=observed)


def run(job: Job) -> Outcome:
    """Run one job in a child process; its death, or what it refuses, becomes a Check."""
    name = subject(job)
    try:
        outcome: Outcome = next(stream(name, _climb_once, job, limits=job.options.limits))
        return outcome
    except RuntimeAbsent as absent:
        return Outcome([Check("R1", name, Verdict.ABSENT, detail=str(absent))], [])
    except EdgeqafError as error:
        return Outcome([Check("R1", name, Verdict.REFUSED, detail=str(error))], [])


def _climb_once(job: Job) -> Iterator[Outcome]:
    yield climb(job)


def climb(job: Job) -> Outcome:
    """R1, R2, R3 where the session offers it, and R4 of one job, in this process."""
    runtime: Runtime = plugins.find("runtimes", job.runtime)
    version = runtime.availability(job.options).version or ""
    with runtime.open(job.artifact, job.configuration, job.options) as session:
        checks = _tensors(job, session, version)
        try:
            models = _whole(job, session)
        except Refused as error:  # single matrices run, the model does not
            return Outcome([*checks, Check("R4", subject(job), Verdict.REFUSED, detail=str(error))], [])
    return replace(models, checks=[*checks, *models.checks])


def _whole(job: Job, session: Session) -> Outcome:
    """R3 and R4, of the whole model; and how it takes other settings, if the job asks for it."""
    checks = [*layers.check(job, session)]
    made = [session.logits(ids) for ids in job.tokens]
    if job.bits:
        checks.append(logits.same_bits(job, session, made))
    elif job.reference:
        checks.append(logits.bounded(job, session, made))
    checks += whole.check(job, session)
    if job.varied:
        checks += settings.check(job, session)
    observed = observe(job, session, made) if job.observed else None
    key = witness.key() if job.runtime == REFERENCE else {}
    return Outcome(checks, made, witness.digest(made), key, observed)


def _quantized(job: Job) -> Iterator[tuple[str, Stored, QTensor]]:
    """(logical name, where it is stored, what it is held against) of each quantized tensor; each is read once."""
    own = isinstance(job.expected, Quantized) and job.expected.tensors is job.artifact.tensors
    for name, stored, q in job.artifact.quantized():
        yield name, stored, q if own else job.expected[name]


def _tensors(job: Job, session: Session, version: str) -> list[Check]:
    """R1 and R2, each tensor in turn."""
    weights, kernels = Tally(), _Kernels(job, session)
    for name, stored, q in _quantized(job):
        _weights(weights, session, name, stored, q)
        kernels.ask(name, stored, q)
    return [weights.check("R1", job, version), kernels.check()]


def _weights(tally: Tally, session: Session, name: str, stored: Stored, q: QTensor) -> None:
    """R1: the runtime's own decode of a quantized tensor equals ours."""
    for first, last in cuts(q.shape, most=AT_ONCE):
        found, expected = session.weights(stored, slice(first, last)), decode(q.rows(first, last))
        tally.add(name, expected, found, compare_bits(expected, found), place=partial(_further, first))


def _further(first: int, row: int, column: int) -> tuple[int, int]:
    return first + row, column


class _Kernels:
    """R2: read-back of every weight, and integer probes, through the runtime's own matmul."""

    def __init__(self, job: Job, session: Session) -> None:
        self._job, self._session, self._tally = job, session, Tally()
        self._sums = self._certain = 0
        self._absent: dict[str, RuntimeAbsent] = {}

    def ask(self, name: str, stored: Stored, q: QTensor) -> None:
        try:
            self._session.linear(stored, np.zeros((1, q.shape[1]), np.float32))
        except RuntimeAbsent as reason:  # of this tensor's type and shape; another configuration covers it
            self._absent[name] = reason
            return
        self._tally.tensors.add(name)
        for batch in probes.batches(q, self._job.configuration):
            found = self._session.linear(stored, batch.x)
            different = compare_bits(batch.expected, found) & batch.certified
            if batch.inputs is None:
                self._sums, self._certain = (
                    self._sums + batch.certified.size,
                    self._certain + int(batch.certified.sum()),
                )
                self._tally.add(name, batch.expected, found, different, count=0)
            else:
                weights = int((batch.inputs >= 0).sum()) * q.shape[0]
                self._tally.add(name, batch.expected, found, different, weights, partial(culprit, batch, q, found))

    def check(self) -> Check:
        """Raises RuntimeAbsent where no tensor could be asked for."""
        if self._absent and not self._tally.tensors:
            raise next(iter(self._absent.values()))
        detail = f"and {self._certain} of {self._sums} probe sums within the exactness budget"
        if self._absent:
            detail += f"; {len(self._absent)} tensors have no layout here ({listed(sorted(self._absent))})"
        return self._tally.check("R2", self._job, detail)
