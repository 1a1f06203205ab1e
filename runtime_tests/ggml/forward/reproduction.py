"""Logits of llama.cpp's whole model beside the same computed again from token ids."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Reproduction
from edgeqaf.report import compare_bits
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.forward.family import shape
from runtime_tests.ggml.forward.identify import identify
from runtime_tests.ggml.forward.network import Network
from runtime_tests.ggml.forward.nodes import Nodes, Watch
from runtime_tests.ggml.forward.weights import Weights
from runtime_tests.ggml.kernels import Kernels
from runtime_tests.ggml.library import Library
from runtime_tests.ggml.matmul import Cpu
from runtime_tests.ggml.model import BATCH, Model, Settings

SETTINGS = (Settings(), Settings(half=True), Settings(half=True, flash=True))


class Reproducer:
    """Of one artifact. Raises RuntimeAbsent for a graph or an operation that is not written again."""

    def __init__(
        self, library: Library, cpu: Cpu, file: GgufFile, artifact: Artifact, kernels: Kernels, repack: bool
    ) -> None:
        self._library, self._cpu, self._file, self._artifact = library, cpu, file, artifact
        self._kernels, self._repack = kernels, repack
        self._shape = shape(file)
        self._arithmetic = identify(cpu, self._shape)
        self._weights: tuple[Mapping[str, QTensor], Weights] | None = None

    def reproduce(
        self, model: Model, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor]
    ) -> Iterator[Reproduction]:
        """See `edgeqaf.replay.Reproduces`."""
        for settings in SETTINGS:
            with model.under(settings):
                found = model.replay(tokens, more)
            network = self._network(settings, expected, len(found))
            ours = np.concatenate([network.append(piece) for piece in evaluations(tokens, found, more)])
            differ = compare_bits(ours, found).any()
            watches = self.watch(model, settings, tokens, more, expected) if differ else ()
            first = next((watch.first for watch in watches if watch.first), None)
            yield Reproduction(str(settings), self._arithmetic.name, found, ours, first)

    def _network(self, settings: Settings, expected: Mapping[str, QTensor], capacity: int) -> Network:
        """An empty sequence of the model that has the integers of ``expected``."""
        if self._weights is None or self._weights[0] is not expected:
            weights = Weights(self._file, self._artifact, expected, self._kernels, self._arithmetic, self._repack)
            self._weights = expected, weights
        return Network(self._shape, self._weights[1], self._arithmetic, settings, self._cpu.threads, capacity)

    def watch(
        self, model: Model, settings: Settings, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor]
    ) -> Iterator[Watch]:
        """Each evaluation's operations held against the graph's, all of them watched in a run of their own."""
        nodes = Nodes(self._library)
        with model.under(settings), model.tapped(nodes.tap):
            found = model.replay(tokens, more)
        network = self._network(settings, expected, len(found))
        for evaluation, piece in enumerate(evaluations(tokens, found, more)):
            watch = nodes.watch(evaluation)
            network.append(piece, watch)
            yield watch


def evaluations(tokens: Sequence[int], logits: Floats, more: int) -> list[Sequence[int]]:
    """What `Model.replay` evaluates at once: the prompt, in pieces of `BATCH`, and ``more`` tokens chosen by logits."""
    pieces: list[Sequence[int]] = [tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH)]
    last = logits[len(tokens) - 1 : len(tokens) - 1 + more].argmax(-1)
    return pieces + [[int(token)] for token in last]
