"""A GGUF model in a llama.cpp, wherever that runs: what the ladder asks of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from edgeqaf import witness
from edgeqaf.digest import Floats
from edgeqaf.protocols import ALL, Artifact, Stored
from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Product, Reproduction
from edgeqaf.vary import ROWS, THREADS, Varied
from runtime_tests.ggml.again import product
from runtime_tests.ggml.engine import Engine
from runtime_tests.ggml.kernels import Kernels


class LlamaCppSession:
    """One GGUF model in llama.cpp; see `edgeqaf.protocols.Session` and `edgeqaf.vary.Varies`."""

    def __init__(self, engine: Engine, artifact: Artifact, repack: bool) -> None:
        self._engine, self._artifact, self._repack = engine, artifact, repack

    def weights(self, stored: Stored, rows: slice = ALL) -> Floats:
        if rows == ALL:
            weights: Floats = stored.in_logical_order(self._engine.weights(stored.name))
            return weights
        logical = np.arange(stored.tensor.shape[0])[rows]
        return self._engine.weights(stored.name, logical if stored.rows is None else np.argsort(stored.rows)[logical])

    def linear(self, stored: Stored, x: Floats) -> Floats:
        """Raises RuntimeAbsent where this CPU has no repacked layout for the tensor."""
        y = self._engine.multiply(stored.name, x, self._repack)
        return np.ascontiguousarray(stored.in_logical_order(y.T).T)

    def logits(self, tokens: Sequence[int]) -> Floats:
        return self._engine.logits(tokens)

    def encode(self, text: str) -> list[int]:
        return self._engine.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._engine.decode(tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        return self._engine.generate(prompts, max_new_tokens)

    def vary(self, prompts: Sequence[Sequence[int]]) -> Iterator[Varied]:
        for threads in THREADS:
            for rows in ROWS:
                made = self._engine.logits_with(prompts, threads, rows)
                yield Varied(threads, rows, witness.digest(made))


class ReplayingSession(LlamaCppSession):
    """`LlamaCppSession`, and `edgeqaf.replay.Replays`."""

    def replay(
        self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor], see: Callable[[Product], None] | None
    ) -> Floats:
        """Raises RuntimeAbsent for a library whose tensors this binding does not understand."""
        if see is None:
            return self._engine.replay(tokens, more, None)
        return self._engine.replay(tokens, more, lambda seen: see(product(self._kernels, seen, expected)))

    @cached_property
    def _kernels(self) -> Kernels:
        return Kernels(self._engine, self._artifact)


class ReproducingSession(ReplayingSession):
    """`ReplayingSession`, and `edgeqaf.replay.Reproduces`."""

    _held: Mapping[str, QTensor] | None = None

    def reproduce(self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor]) -> Iterator[Reproduction]:
        """Raises RuntimeAbsent for a family or a kernel whose arithmetic is not known."""
        if self._held is not expected:
            self._engine.hold(self._artifact, expected)
            self._held = expected
        return self._engine.reproduce(tokens, more)
