"""llama.cpp on the CPU: the stock library reads the GGUF file that will be shipped.

Two configurations, because llama.cpp has two families of kernels for the same bytes. ``repack`` is
its default, which rearranges the matrices it can while loading; ``plain`` keeps the file's layout.
Both round activations to 8 bits per block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Availability, Configuration, Form, RuntimeOptions, Stored
from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Product, Reproduction
from runtime_tests.ggml.again import Again
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.forward.reproduction import Reproducer
from runtime_tests.ggml.kernels import Kernels
from runtime_tests.ggml.library import Library, load
from runtime_tests.ggml.matmul import Cpu, Matrix
from runtime_tests.ggml.model import Model
from runtime_tests.ggml.quantize import quantize
from runtime_tests.ggml.tap import Tap

REPACK = "repack"


class LlamaCpp:
    """The llama.cpp runtime; see `edgeqaf.protocols.Runtime`."""

    reads: ClassVar[str | None] = "gguf"
    elsewhere: ClassVar[bool] = False
    configurations: ClassVar[tuple[Configuration, ...]] = (
        Configuration("plain", int8_activations=True, offset_form=Form.FUSED),
        Configuration(REPACK, int8_activations=True, offset_form=Form.FUSED),
    )

    def availability(self, options: RuntimeOptions) -> Availability:
        try:
            library = load(options.llama_lib)
            return Availability(library.version, isa=library.cpu)
        except RuntimeAbsent as absent:
            return Availability(None, f"{absent.cause}; {absent.remedy}")

    @contextmanager
    def open(
        self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
    ) -> Iterator["LlamaCppSession"]:
        with ExitStack() as resources:
            yield LlamaCppSession(load(options.llama_lib), artifact, configuration, options.threads, resources)

    def quantize(
        self, source: Path, target: Path, kind: str, options: RuntimeOptions, *, pure: bool, imatrix: Path | None
    ) -> str:
        """Let llama.cpp quantize a float GGUF file to its file type ``kind``; return its version."""
        return quantize(options.llama_lib, source, target, kind, threads=options.threads, pure=pure, imatrix=imatrix)


class LlamaCppSession:
    """One GGUF model in llama.cpp; see `edgeqaf.protocols.Session`, `edgeqaf.replay.Replays` and `Reproduces`.

    Opening parses the file. The whole model is loaded at the first question that needs it, so that
    asking for single matrices takes the memory of one matrix.
    """

    def __init__(
        self, library: Library, artifact: Artifact, configuration: Configuration, threads: int, resources: ExitStack
    ) -> None:
        self._library, self._artifact, self._threads, self._resources = library, artifact, threads, resources
        self._repack = configuration.name == REPACK
        self._file = GgufFile(library, artifact.path)
        resources.callback(self._file.close)
        self._cpu = Cpu(library, threads)
        resources.callback(self._cpu.close)
        self._matrix: tuple[str, Matrix] | None = None
        resources.callback(self._drop_matrix)

    def weights(self, stored: Stored) -> Floats:
        weights: Floats = stored.in_logical_order(self._file.decode(self._file.tensor(stored.name)))
        return weights

    def linear(self, stored: Stored, x: Floats) -> Floats:
        """Raises RuntimeAbsent where this CPU has no repacked layout for the tensor."""
        y = self._loaded(stored.name).multiply(x)
        return np.ascontiguousarray(stored.in_logical_order(y.T).T)

    def logits(self, tokens: Sequence[int]) -> Floats:
        return self._model.logits(tokens)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._model.decode(tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        return self._model.generate(prompts, max_new_tokens)

    def replay(
        self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor], see: Callable[[Product], None] | None
    ) -> Floats:
        """Raises RuntimeAbsent for a library whose tensors this binding does not understand."""
        if see is None:
            return self._model.replay(tokens, more)
        with self._model.tapped(Tap(self._library, lambda seen: see(self._again.product(seen, expected)))):
            return self._model.replay(tokens, more)

    def reproduce(self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor]) -> Iterator[Reproduction]:
        """Raises RuntimeAbsent for a family or a kernel whose arithmetic is not known."""
        return self._reproducer.reproduce(self._model, tokens, more, expected)

    @cached_property
    def _again(self) -> Again:
        return Again(self._cpu, self._file, self._kernels)

    @cached_property
    def _reproducer(self) -> Reproducer:
        return Reproducer(self._library, self._cpu, self._file, self._artifact, self._kernels, self._repack)

    @cached_property
    def _kernels(self) -> Kernels:
        return Kernels(self._cpu, self._file, self._artifact)

    @cached_property
    def _model(self) -> Model:
        model = Model(self._library, self._artifact.path, self._repack, self._threads)
        self._resources.callback(model.close)
        return model

    def _loaded(self, name: str) -> Matrix:
        """The matrix ``name`` in its buffer; the last one asked for is kept, for batches of probes."""
        if self._matrix is None or self._matrix[0] != name:
            self._drop_matrix()
            self._matrix = name, Matrix(self._cpu, self._file.tensor(name), self._repack)
        return self._matrix[1]

    def _drop_matrix(self) -> None:
        if self._matrix:
            self._matrix[1].close()
        self._matrix = None


runtime = LlamaCpp()
