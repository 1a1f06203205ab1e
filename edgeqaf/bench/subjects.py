"""Whom the bench asks beside a model in memory: an artifact, in the runtime that its users have."""

from collections.abc import Iterator
from contextlib import contextmanager

from edgeqaf import asking, plugins
from edgeqaf.console import Advance
from edgeqaf.protocols import Artifact, Runtime, RuntimeOptions, fitting
from edgeqaf.scoring import Subject

RUNTIMES = {"gguf": "llama_cpp", "onnx": "onnxruntime"}


def of_artifact(artifact: Artifact, options: RuntimeOptions) -> Subject:
    """An artifact in the configuration that users get; in this process, which is a child of the bench's."""
    name = RUNTIMES[artifact.format]
    runtime: Runtime = plugins.find("runtimes", name)
    about = (name, artifact, fitting(runtime, artifact)[-1], options)
    return Subject(
        f"{artifact.format} artifact", name, artifact.root, artifact.reference,
        lambda prompts, limit: asking.generate(*about, prompts, limit),
        lambda examples: asking.losses(*about, examples),
    )  # fmt: skip


@contextmanager
def silent(title: str, total: int) -> Iterator[Advance]:
    """No progress of its own: a cell is one step of the bench's."""
    yield lambda done, note="": None
