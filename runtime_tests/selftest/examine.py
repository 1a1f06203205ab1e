"""One subject, examined in this process: every defect is seeded, and every rung asked what it sees."""

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from edgeqaf import plugins
from edgeqaf.digest import Floats, file_sha256
from edgeqaf.errors import EdgeqafError
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions
from edgeqaf.qtensor import QTensor
from edgeqaf.statements import Statements, States
from runtime_tests import ladder, probes
from runtime_tests.selftest.damage import random
from runtime_tests.selftest.looking import Look, Question, Some, look, ways
from runtime_tests.selftest.registry import Random
from runtime_tests.selftest.subjects import Sound, Subject, prepare


@dataclass(frozen=True)
class Asked:
    """What a self-test is asked: the runtimes, their options, and the seed."""

    runtimes: tuple[str, ...]
    options: RuntimeOptions
    seed: int


class Bench:
    """A subject made ready, with what is known of it while it is sound. place: an empty folder."""

    def __init__(self, subject: Subject, asked: Asked, place: Path) -> None:
        self.subject, self.asked, self.place = subject, asked, place
        self.sound: Sound = prepare(subject, place, asked.seed)
        self.artifact = self.sound.artifact
        self.exporter = plugins.find("exporters", subject.format)
        self._probes: dict[tuple[int, Configuration], list[probes.Batch]] = {}
        self._logits: dict[str, Floats | None] = {}
        self._few: dict[tuple[Path, tuple[str, ...]], Some] = {}

    def random(self, *words: str) -> Random:
        return random(self.asked.seed, self.subject.name, *words)

    @property
    def ways(self) -> list[tuple[str, Configuration]]:
        """All configurations that take the artifact."""
        bare = [] if self.subject.bare else [ladder.REFERENCE]
        return ways(self.artifact, [name for name in self.asked.runtimes if name not in bare])

    @property
    def usual(self) -> tuple[str, Configuration] | None:
        """What a user gets of the runtimes that load the artifact itself; None where there are none."""
        own = [(n, c) for n, c in self.ways if plugins.find("runtimes", n).reads and "cuda" not in c.name]
        return own[-1] if own else None

    @cached_property
    def quantized(self) -> dict[str, QTensor]:
        """All matrices on a grid, where the model is small."""
        return dict(self.sound.model.quantized()) if self.sound.small else {}

    @cached_property
    def digests(self) -> dict[str, str]:
        return self.artifact.digests()

    @cached_property
    def hashes(self) -> dict[str, str]:
        return hashes(self.artifact)

    @cached_property
    def restated(self) -> Statements | None:
        """What the artifact ought to say; None where that cannot be told, or is not what it says."""
        if not isinstance(self.exporter, States):
            return None
        try:
            made = self.exporter.restated(self.sound.model)
            return made if made == self.exporter.stated(self.artifact.path) else None
        except EdgeqafError:
            return None

    def question(self, names: Collection[str], **more: object) -> Question:
        """R1 and R2 of some matrices, in all but what ``more`` says."""
        expected = self.quantized or {n: t for n in names if isinstance(t := self.sound.model.tensors[n], QTensor)}
        asked = Question(sorted(names), expected, self.asked.options, layers=False, probing=self._probing)
        return replace(asked, **more)  # type: ignore[arg-type]

    def logits(self, name: str, configuration: Configuration) -> Floats | None:
        """Of the sound artifact, in one configuration; None where there are none."""
        who = f"{name} {configuration.name}"
        if who not in self._logits:
            self._logits[who] = look(self.artifact, name, configuration, self.question((), logits=True)).logits
        return self._logits[who]

    def look(self, artifact: Artifact, way: tuple[str, Configuration], question: Question) -> Look:
        """Tensors of a small model are read once for all ways."""
        if not self.sound.small:
            return look(artifact, *way, question)
        key = artifact.path, tuple(question.names)
        self._few.setdefault(key, Some(artifact, question.names))
        return look(artifact, *way, question, few=self._few[key])

    def _probing(self, q: QTensor, configuration: Configuration) -> list[probes.Batch]:
        """Made once for all configurations that compute in one form; of a large model, anew."""
        if not self.sound.small:
            return list(probes.batches(q, configuration))
        key = id(q), replace(configuration, name="", program="")
        if key not in self._probes:
            self._probes[key] = list(probes.batches(q, configuration))
        return self._probes[key]


def hashes(artifact: Artifact) -> dict[str, str]:
    """SHA-256 of each file."""
    path = artifact.path
    files = path.rglob("*") if path.is_dir() else path.parent.glob("*.gguf")
    return {str(file.relative_to(path.parent)): file_sha256(file) for file in files if file.is_file()}


def examine(subject: Subject, asked: Asked, done: Collection[str]) -> Iterator[object]:
    """Findings, controls, what is missing, and before each risk a `Begun`. done: kinds that are not to be tried."""
    import torch

    from runtime_tests.selftest import beside, matrices

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="edgeqaf-self-test-") as folder:
        bench = Bench(subject, asked, Path(folder))
        if matrices.NAME not in done:
            yield from matrices.examine(bench)
        yield from beside.examine(bench, done)
