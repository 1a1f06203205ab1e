"""What one climb of the ladder is asked, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeqaf.digest import Floats
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Check
from runtime_tests.golden.file import Entry


@dataclass(frozen=True)
class Job:
    """What one child process is asked to check: one configuration of one runtime on one artifact.

    expected: tensors to hold the runtime against.
    tokens: prompts for R4; reference: PyTorch's logits for them; texts: the same prompts as text.
    bits: logits that must come out to the bit, where the program says so; none elsewhere.
    observed: whether the answer has what a golden remembers. varied: whether other settings are tried.
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
    observed: bool = False
    varied: bool = False


@dataclass(frozen=True)
class Outcome:
    """A child's findings, its logits for each prompt, their digest and the circumstances (`witness.key`).

    observed: what a golden remembers of the climb, if the job asks for it.
    """

    checks: list[Check]
    logits: list[Floats]
    digest: str = ""
    key: Mapping[str, str] = field(default_factory=dict)
    observed: Entry | None = None


def subject(job: Job) -> str:
    """How reports name a job."""
    return named(job.runtime, job.configuration.name, job.artifact.format)


def named(runtime: str, configuration: str, format: str) -> str:
    """How reports name what was asked; of a runtime as a whole, ``configuration`` is ""."""
    return f"{runtime} {configuration} on {format}" if configuration else f"{runtime} on {format}"
