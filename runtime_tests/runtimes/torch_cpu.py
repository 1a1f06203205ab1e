"""PyTorch on the CPU: the reference, rebuilt from the integers of whatever artifact it is given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import ClassVar

import torch

from edgeqaf import evaluate, witness
from edgeqaf.digest import Floats
from edgeqaf.jsonfile import read_json
from edgeqaf.modeling import build
from edgeqaf.protocols import Artifact, Availability, Configuration, Form, RuntimeOptions, Stored
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.tokenizer import Tokenizer


class TorchSession:
    """See edgeqaf.protocols.Session."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.tokenizer = Tokenizer(artifact.reference)

    @cached_property
    def model(self) -> torch.nn.Module:
        """Built when the first question needs it: single matrices take the memory of one."""
        tensors = {name: stored.tensor for name, stored in self._artifact.tensors.items()}
        return build(read_json(self._artifact.reference / "config.json"), tensors)

    def weights(self, stored: Stored) -> Floats:
        """`decode` on torch tensors: held against `decode` on numpy arrays."""
        weights: Floats = decode(_torch(stored)).numpy()
        return weights

    def linear(self, stored: Stored, x: Floats) -> Floats:
        with torch.no_grad():
            y: Floats = torch.nn.functional.linear(torch.from_numpy(x), decode(_torch(stored))).numpy()
        return y

    def logits(self, tokens: Sequence[int]) -> Floats:
        return witness.logits(self.model, list(tokens))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, prompt=True)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        return evaluate.generate(self.model, self.tokenizer, prompts, max_new_tokens)


class TorchCpu:
    """See edgeqaf.protocols.Runtime."""

    reads: ClassVar[str | None] = None
    elsewhere: ClassVar[bool] = False
    configurations: ClassVar[tuple[Configuration, ...]] = (
        Configuration("float32", int8_activations=False, offset_form=Form.DECODED),
    )

    def availability(self, options: RuntimeOptions) -> Availability:
        version = f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        return Availability(version, isa=witness.key()["cpu"])

    @contextmanager
    def open(self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Iterator[TorchSession]:
        torch.set_num_threads(options.threads)
        yield TorchSession(artifact)


def _torch(stored: Stored) -> QTensor:
    q = stored.tensor
    assert isinstance(q, QTensor)
    zero = None if q.zero is None else torch.from_numpy(q.zero)
    return QTensor(q.grid, torch.from_numpy(q.codes), torch.from_numpy(q.scale), zero)


runtime = TorchCpu()
