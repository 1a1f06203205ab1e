"""The verification ladder: R0 file, R1 weights, R2 kernels, R3 layers, R4 logits, for one artifact.

R0 needs no runtime. Each configuration of each runtime climbs in a process of its own, because an
inference engine may abort on a file it does not like, and a dead child is a finding, not a crash.
The tensors a runtime is held against are ``expected``: those of the artifact itself once R0 has
tied them to the model's digests, or those of a model folder the user names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from edgeqaf import plugins, witness
from edgeqaf.child import stream
from edgeqaf.errors import EdgeqafError, Refused, RuntimeAbsent
from edgeqaf.protocols import Artifact, Runtime, RuntimeOptions, Session, fitting
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Check, Difference, Verdict
from edgeqaf.statements import States, model_of, versions
from edgeqaf.tokenizer import Tokenizer
from runtime_tests import layers, logits, settings, tensors, whole
from runtime_tests.golden.observation import observe
from runtime_tests.job import Job, Outcome, named, subject
from runtime_tests.tally import listed

REFERENCE = "torch_cpu"
PROGRAM = "interpreter"  # what decides on the bits of a program that has but one result


def at_home() -> list[str]:
    """The runtimes of this environment: all but those that must be looked for elsewhere."""
    return [name for name in plugins.names("runtimes") if not plugins.find("runtimes", name).elsewhere]


def check_file(artifact: Artifact, digests: Mapping[str, str], found: Mapping[str, str] | None = None) -> Check:
    """R0: the artifact holds exactly the tensors whose digests the receipt names. found: its own, if they are known."""
    found = artifact.digests() if found is None else found
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


def check_statements(artifact: Artifact, asked: Mapping[str, Any], tool: Mapping[str, str]) -> Check | None:
    """R0: the artifact says of how it is to be run what our exporter would, from its reference's config and tokenizer.

    asked, tool: as the receipt has them. Other versions than those that made it may write another program for the same
    model, so then a difference proves nothing. None for a format that states nothing.
    """
    exporter = plugins.find("exporters", artifact.format)
    if not isinstance(exporter, States):
        return None
    subject = f"{artifact.format} statements"
    try:
        expected, found = exporter.restated(model_of(artifact, asked)), exporter.stated(artifact.path)
    except EdgeqafError as error:
        return Check("R0", subject, Verdict.REFUSED, detail=str(error))
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    count, unit = len(expected.keys() | found.keys()), "statements"
    if not wrong:
        return Check("R0", subject, Verdict.EXACT, 0, count, 0, unit)
    here = versions(exporter)
    if others := [
        f"{package} {tool.get(package, 'unrecorded')}" for package in here if tool.get(package) != here[package]
    ]:
        detail = f"{len(wrong)} of {count} differ, made with {', '.join(others)}: nothing to compare with here"
        return Check("R0", subject, Verdict.ABSENT, detail=detail)
    first = Difference(wrong[0], (), *((d.get(wrong[0]) or "not said")[:16] for d in (expected, found)))
    others_in = f"in {listed(wrong)}" if len(wrong) > 1 else ""
    return Check("R0", subject, Verdict.DIFFERENT, 0, count, len(wrong), unit, others_in, first, tuple(wrong))


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
        checks = tensors.checks(job, session, version)
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
