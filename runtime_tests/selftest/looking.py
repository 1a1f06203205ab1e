"""One artifact in one configuration of one runtime: what each rung says of it, and what it computed."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgeqaf import plugins
from edgeqaf.console import be_quiet
from edgeqaf.digest import Floats
from edgeqaf.errors import EdgeqafError, RuntimeAbsent
from edgeqaf.protocols import Artifact, Configuration, Runtime, RuntimeOptions, Session, Stored, fitting
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Check, Verdict
from runtime_tests import layers, probes, tensors
from runtime_tests.golden.observation import activations
from runtime_tests.job import Job
from runtime_tests.probes import FEWEST
from runtime_tests.tally import listed

PROMPTS = ((0, 84, 74, 71, 2, 104, 80, 9), (0, 41, 12))  # token ids that every vocabulary has


@dataclass(frozen=True)
class Look:
    """What was seen.

    who:     runtime and configuration.
    checks:  of the rungs that were reached; one of R1 that is refused where the runtime would not take it.
    outputs: products of each matrix with ordinary activations, float32 [rows, out]; logits: of `PROMPTS`, joined.
    """

    who: str
    checks: Sequence[Check]
    outputs: Mapping[str, Floats] = field(default_factory=dict)
    logits: Floats | None = None

    @property
    def absent(self) -> bool:
        """Whether nothing could be looked at."""
        return all(check.verdict is Verdict.ABSENT for check in self.checks)


class Some(Mapping[str, Stored]):
    """Some tensors of an artifact, for what asks for every one; each is read once."""

    def __init__(self, artifact: Artifact, names: Sequence[str]) -> None:
        self._tensors, self._names = artifact.tensors, sorted(set(names) & set(artifact.tensors))
        self.program, self.metadata = artifact.program, artifact.metadata
        self._read: dict[str, Stored] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Stored:
        if name not in self._read:
            self._read[name] = self._tensors[name]
        return self._read[name]


@dataclass(frozen=True)
class Question:
    """What every configuration is asked.

    names:    matrices to be read back and probed; expected: what they should be.
    layers:   whether R3 is asked, of the whole model; logits: whether they are wanted.
    rungs:    whether R1 and R2 are asked; else nothing but products is.
    probing:  what makes R2's probes.
    """

    names: Sequence[str]
    expected: Mapping[str, QTensor]
    options: RuntimeOptions
    layers: bool
    logits: bool = False
    rungs: bool = True
    probing: tensors.Probing = probes.batches


Opening = Callable[[Runtime, Artifact, Configuration, RuntimeOptions], Any]  # -> a session's context manager


def plainly(runtime: Runtime, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Any:
    """The runtime as it is."""
    return runtime.open(artifact, configuration, options)


def ways(artifact: Artifact, runtimes: Sequence[str]) -> list[tuple[str, Configuration]]:
    """Every configuration of some runtimes that takes an artifact."""
    return [(name, each) for name in runtimes for each in fitting(plugins.find("runtimes", name), artifact)]


def look(
    artifact: Artifact, name: str, configuration: Configuration, question: Question, opening: Opening = plainly,
    few: Some | None = None,
) -> Look:  # fmt: skip
    """Climb in this process; what is refused, or absent, becomes a check. few: the tensors, if they were read."""
    runtime: Runtime = plugins.find("runtimes", name)
    who = f"{name} {configuration.name}"
    available = runtime.availability(question.options)
    if available.version is None:
        return Look(who, [Check("R1", who, Verdict.ABSENT, detail=available.reason)])
    asked = replace(artifact, tensors=few or Some(artifact, question.names))
    job = Job(name, configuration, asked, question.expected, question.options, PROMPTS)
    checks: list[Check] = []
    try:
        with opening(runtime, artifact, configuration, question.options) as session:
            if question.names and question.rungs:
                checks += tensors.checks(job, session, available.version, question.probing)
            if question.layers:
                checks += layers.check(replace(job, artifact=artifact), session)
            outputs = dict(_outputs(asked, session))
            made = np.concatenate([session.logits(ids) for ids in PROMPTS]) if question.logits else None
    except RuntimeAbsent as absent:
        return Look(who, [*checks, Check("R2", who, Verdict.ABSENT, detail=str(absent))])
    except EdgeqafError as error:
        return Look(who, [*checks, Check("R1", who, Verdict.REFUSED, detail=str(error))])
    return Look(who, checks, outputs, made)


def _outputs(artifact: Artifact, session: Session) -> Iterator[tuple[str, Floats]]:
    """Of the matrices that have a kernel here."""
    for name, stored, q in artifact.quantized():
        try:
            yield name, session.linear(stored, activations(FEWEST, q.shape[1]))
        except RuntimeAbsent:
            continue


def named(check: Check) -> str:
    """What a failed check says, in short."""
    return f"{listed(check.wrong)}: {check.reason}" if check.wrong else check.detail


def keep_quiet() -> None:
    """For the rest of this process: engines that get what is damaged say much, and ggml calls a debugger."""
    be_quiet(True)
    os.environ["GGML_NO_BACKTRACE"] = "1"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
