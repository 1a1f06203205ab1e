"""The verification ladder: R0 file, R1 weights, R2 kernels, R4 logits, for one artifact.

R0 needs no runtime. Each configuration of each runtime climbs in a process of its own, because an
inference engine may abort on a file it does not like, and a dead child is a finding, not a crash.
The tensors a runtime is held against are ``expected``: those of the artifact itself once R0 has
tied them to the model's digests, or those of a model folder the user names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import plugins, witness
from edgeqaf.child import stream
from edgeqaf.digest import Floats
from edgeqaf.errors import EdgeqafError, RuntimeAbsent
from edgeqaf.protocols import Artifact, Configuration, Runtime, RuntimeOptions, Session, fitting
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import Check, Difference, Verdict, compare_bits, first_difference
from edgeqaf.tokenizer import Tokenizer
from runtime_tests import probes

REFERENCE = "torch_cpu"
PROGRAM = "torch_program"  # what decides on the bits of a program that has but one result


@dataclass(frozen=True)
class Job:
    """What one child process is asked to check: one configuration of one runtime on one artifact.

    tokens: prompts for R4; reference: PyTorch's logits for them; texts: the same prompts as text.
    bits: logits that must come out to the bit, where the program says so; none elsewhere.
    """

    runtime: str
    configuration: Configuration
    artifact: Artifact
    expected: Mapping[str, QTensor]
    options: RuntimeOptions
    tokens: Sequence[Sequence[int]] = ()
    texts: Sequence[str] = ()
    reference: Sequence[Floats] = ()
    bits: Sequence[Floats] = ()


@dataclass(frozen=True)
class Outcome:
    """A child's findings, its logits for each prompt, their digest and the circumstances (`witness.key`)."""

    checks: list[Check]
    logits: list[Floats]
    digest: str = ""
    key: Mapping[str, str] = field(default_factory=dict)


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
    others = f"in {_listed(wrong)}" if len(wrong) > 1 else ""
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
            yield Check("R1", f"{name} on {artifact.format}", Verdict.ABSENT, detail=availability.reason)
            continue
        for configuration in fitting(runtime, artifact):
            yield Job(name, configuration, artifact, expected, options)


def with_prompts(job: Job, recorded: Mapping[str, Any] | None, reference: Sequence[Floats] = ()) -> Job:
    """The job with the witness's prompts to run, and PyTorch's logits to be held against, if known."""
    tokens = recorded["tokens"] if recorded else witness.prompts(Tokenizer(job.artifact.reference))
    return replace(job, tokens=tokens, texts=witness.PROMPTS, reference=reference)


def run(job: Job) -> Outcome:
    """Run one job in a child process; its death, or what it refuses, becomes a Check."""
    name = subject(job)
    try:
        outcome: Outcome = next(stream(name, _climb_once, job))
        return outcome
    except RuntimeAbsent as absent:
        return Outcome([Check("R1", name, Verdict.ABSENT, detail=str(absent))], [])
    except EdgeqafError as error:
        return Outcome([Check("R1", name, Verdict.REFUSED, detail=str(error))], [])


def _climb_once(job: Job) -> Iterator[Outcome]:
    yield climb(job)


def climb(job: Job) -> Outcome:
    """R1, R2 and R4 of one job, in this process."""
    runtime: Runtime = plugins.find("runtimes", job.runtime)
    version = runtime.availability(job.options).version or ""
    with runtime.open(job.artifact, job.configuration, job.options) as session:
        checks = [_weights(job, session, version), _kernels(job, session)]
        logits = [session.logits(ids) for ids in job.tokens]
        if job.bits:
            checks.append(_same_bits(job, session, logits))
        elif job.reference:
            checks.append(_logits(job, session, logits))
    key = witness.key() if job.runtime == REFERENCE else {}
    return Outcome(checks, logits, witness.digest(logits), key)


def _weights(job: Job, session: Session, version: str) -> Check:
    """R1: the runtime's own decode of every quantized tensor equals ours."""
    tally = _Tally()
    for name, stored, _ in job.artifact.quantized():
        expected = decode(job.expected[name])
        found = session.weights(stored)
        tally.add(name, expected, found, compare_bits(expected, found))
    return tally.check("R1", job, version)


def _kernels(job: Job, session: Session) -> Check:
    """R2: one-hot read-back of every weight, and integer probes, through the runtime's own matmul."""
    tally = _Tally()
    outputs = certified = 0
    absent: dict[str, RuntimeAbsent] = {}
    for name, stored, _ in job.artifact.quantized():
        q = job.expected[name]
        try:
            session.linear(stored, np.zeros((1, q.shape[1]), np.float32))
        except RuntimeAbsent as reason:  # of this tensor's type and shape; another configuration covers it
            absent[name] = reason
            continue
        for batch in probes.batches(q, job.configuration):
            found = session.linear(stored, batch.x)
            different = compare_bits(batch.expected, found) & batch.certified
            if batch.kind == "one-hot":
                tally.add(name, batch.expected, found, different)
            else:
                outputs, certified = outputs + batch.certified.size, certified + int(batch.certified.sum())
                tally.add(name, batch.expected, found, different, count=False)
        tally.tensors.add(name)
    if absent and not tally.tensors:
        raise next(iter(absent.values()))
    detail = f"and {certified} of {outputs} probe sums within the exactness budget"
    if absent:
        detail += f"; {len(absent)} tensors have no layout here ({_listed(sorted(absent))})"
    return tally.check("R2", job, detail)


def _same_bits(job: Job, session: Session, logits: list[Floats]) -> Check:
    """R4: logits and those of PyTorch's run of the same program, which has one result."""
    expected = np.concatenate(list(job.bits))
    found = np.concatenate(logits).astype(np.float32, copy=False)
    if found.shape != expected.shape:
        return Check("R4", subject(job), Verdict.DIFFERENT, len(logits), unit="logits", detail="another shape")
    different = compare_bits(expected, found)
    first = first_difference("logits", expected, found, different) if different.any() else None
    verdict = Verdict.DIFFERENT if first else Verdict.EXACT
    detail = f"PyTorch's bits of this program, SHA-256 {witness.digest(list(job.bits))[:16]}; {_tokens(job, session)}"
    return Check("R4", subject(job), verdict, len(logits), expected.size, int(different.sum()), "logits", detail, first)


def _logits(job: Job, session: Session, logits: list[Floats]) -> Check:
    """R4: bounded against PyTorch's logits, with greedy agreement, or different if they make no sense."""
    fits = all(a.shape == b.shape and np.isfinite(b).all() for a, b in zip(job.reference, logits, strict=True))
    if not fits:
        return Check(
            "R4", subject(job), Verdict.DIFFERENT, len(logits), unit="logits", detail="not finite, or another shape"
        )
    expected, found = np.concatenate(list(job.reference)), np.concatenate(logits)
    agree = int((expected.argmax(-1) == found.argmax(-1)).sum())
    error = float(np.abs(expected - found).max() / (expected.max() - expected.min()))
    cause = "8-bit activations" if job.configuration.int8_activations else "order of float32 sums"
    if job.configuration.exact_sums and not job.configuration.int8_activations:
        cause = "16-bit activations"
    detail = (
        f"greedy {agree}/{len(expected)}, KL {_divergence(expected, found):.1e}, max error {error:.1e} of the range "
        f"({cause}); {_tokens(job, session)}"
    )
    differing = int(compare_bits(expected, found).sum())
    verdict = Verdict.BOUNDED if differing else Verdict.EXACT
    return Check("R4", subject(job), verdict, len(logits), expected.size, differing, "logits", detail)


def _tokens(job: Job, session: Session) -> str:
    """Whether the runtime's tokenizer is PyTorch's."""
    same = sum(session.encode(text) == list(ids) for text, ids in zip(job.texts, job.tokens, strict=True))
    return f"tokenizer equal on {same}/{len(job.texts)}"


def _divergence(expected: Floats, found: Floats) -> float:
    """Mean Kullback-Leibler divergence over positions, in nats."""

    def log_softmax(x: Floats) -> NDArray[np.float64]:
        shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return result

    p, q = log_softmax(expected), log_softmax(found)
    return max(0.0, float((np.exp(p) * (p - q)).sum(-1).mean()))


class _Tally:
    """Adds up comparisons over tensors and remembers the first difference."""

    def __init__(self) -> None:
        self.tensors: set[str] = set()
        self.wrong: dict[str, int] = {}
        self.compared = 0
        self.first: Difference | None = None

    def add(self, name: str, expected: Floats, found: Floats, different: NDArray[np.bool_], count: bool = True) -> None:
        self.tensors.add(name)
        self.compared += expected.size if count else 0
        if different.any():
            self.wrong[name] = self.wrong.get(name, 0) + int(different.sum())
            self.first = self.first or first_difference(name, expected, found, different)

    def check(self, rung: str, job: Job, detail: Any) -> Check:
        names = sorted(self.wrong)
        verdict = Verdict.DIFFERENT if names else Verdict.EXACT
        if len(names) > 1:
            detail = f"{detail}; in {_listed(names)}"
        wrong, count = sum(self.wrong.values()), len(self.tensors)
        return Check(
            rung, subject(job), verdict, count, self.compared, wrong, "weights", detail, self.first, tuple(names)
        )


def _listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def subject(job: Job) -> str:
    """How reports name a job."""
    return f"{job.runtime} {job.configuration.name} on {job.artifact.format}"
