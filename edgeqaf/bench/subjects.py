"""Whom the bench asks: a model in memory, or an artifact in the runtime that its users have."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from edgeqaf import asking, evaluate, plugins
from edgeqaf.console import Advance
from edgeqaf.data import Example
from edgeqaf.metrics import Losses
from edgeqaf.protocols import Artifact, Runtime, RuntimeOptions
from edgeqaf.scoring import Subject
from edgeqaf.tokenizer import Tokenizer

RUNTIMES = {"gguf": "llama_cpp", "onnx": "onnxruntime"}


def in_memory(model: nn.Module, tokenizer: Tokenizer) -> Subject:
    """A model that is in no folder."""

    def answers(prompts: Sequence[str], limit: int) -> Iterator[str]:
        ids = [tokenizer.encode(prompt, prompt=True) for prompt in prompts]
        for made in evaluate.generate(model.eval(), tokenizer, ids, limit):
            yield tokenizer.decode(made)

    def losses(examples: Sequence[Example]) -> Iterator[Losses]:
        return evaluate.losses(model.eval(), tokenizer.pad, examples)

    return Subject("in memory", "torch", None, tokenizer.folder, answers, losses)


def of_artifact(artifact: Artifact, options: RuntimeOptions) -> Subject:
    """An artifact in the configuration that users get; in this process, which is a child of the bench's."""
    name = RUNTIMES[artifact.format]
    runtime: Runtime = plugins.find("runtimes", name)
    about = (name, artifact, runtime.configurations[-1], options)
    return Subject(
        f"{artifact.format} artifact", name, artifact.root, artifact.reference,
        lambda prompts, limit: asking.generate(*about, prompts, limit),
        lambda examples: asking.losses(*about, examples),
    )  # fmt: skip


@contextmanager
def silent(title: str, total: int) -> Iterator[Advance]:
    """No progress of its own: a cell is one step of the bench's."""
    yield lambda done, note="": None
