"""Logits of llama.cpp's whole model beside the same computed again from token ids."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Reproduction
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.forward.family import shape
from runtime_tests.ggml.forward.identify import identify
from runtime_tests.ggml.forward.network import Network
from runtime_tests.ggml.forward.nodes import Nodes
from runtime_tests.ggml.forward.weights import Weights
from runtime_tests.ggml.kernels import Kernels
from runtime_tests.ggml.matmul import Cpu
from runtime_tests.ggml.model import BATCH, Model, Settings

SETTINGS = (Settings(), Settings(half=True), Settings(half=True, flash=True))


class Reproducer:
    """Of one artifact. Raises RuntimeAbsent for a graph or an operation that is not written again."""

    def __init__(
        self, cpu: Cpu, file: GgufFile, artifact: Artifact, expected: Mapping[str, QTensor], kernels: Kernels,
        repack: bool,
    ) -> None:  # fmt: skip
        self._cpu, self._shape = cpu, shape(file)
        self._arithmetic = identify(cpu, self._shape)
        self._weights = Weights(file, artifact, expected, kernels, self._arithmetic, repack)

    def reproduce(self, model: Model, tokens: Sequence[int], more: int) -> Iterator[Reproduction]:
        """See `edgeqaf.replay.Reproduces`."""
        for settings in SETTINGS:
            nodes = Nodes(self._cpu.library)
            with model.under(settings):
                found = model.replay(tokens, more)
                with model.tapped(nodes.tap):
                    model.replay(tokens, more)
            network = self._network(settings, len(found))
            pieces = evaluations(tokens, found, more)
            watches = [nodes.watch(evaluation) for evaluation in range(len(pieces))]
            ours = np.concatenate([network.append(piece, watch) for piece, watch in zip(pieces, watches, strict=True)])
            first = next((watch.first for watch in watches if watch.first), None)
            compared, differing = (sum(getattr(w, count) for w in watches) for count in ("compared", "differing"))
            yield Reproduction(str(settings), self._arithmetic.name, found, ours, compared, differing, first)

    def _network(self, settings: Settings, capacity: int) -> Network:
        """An empty sequence."""
        return Network(self._shape, self._weights, self._arithmetic, settings, self._cpu.threads, capacity)


def evaluations(tokens: Sequence[int], logits: Floats, more: int) -> list[Sequence[int]]:
    """What `Model.replay` evaluates at once: the prompt, in pieces of `BATCH`, and ``more`` tokens chosen by logits."""
    pieces: list[Sequence[int]] = [tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH)]
    last = logits[len(tokens) - 1 : len(tokens) - 1 + more].argmax(-1)
    return pieces + [[int(token)] for token in last]
