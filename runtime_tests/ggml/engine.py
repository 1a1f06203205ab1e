"""One GGUF file in the llama.cpp of this process, by the names that the file has for its tensors.

`runtime_tests.ggml.remote` has the same in another process, on another processor. What is asked and answered are arrays
and plain values, so nothing here needs to know which.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.library import Library
from runtime_tests.ggml.matmul import ROWS, Cpu, Gpu, Matrix
from runtime_tests.ggml.model import Model
from runtime_tests.ggml.tap import Seen, Tap

if TYPE_CHECKING:  # a worker elsewhere does without what these need
    from edgeqaf.protocols import Artifact
    from edgeqaf.qtensor import QTensor
    from edgeqaf.replay import Reproduction


@dataclass(frozen=True)
class Setting:
    """How a file is computed with.

    repack: whether the CPU rearranges the matrices that it can while loading.
    rows:   of activations that are computed at once, at most; None: as many as llama.cpp's default.
    least:  rows of one product; fewer are filled up with zeros, so that they meet the kernel for many.
    """

    repack: bool = False
    threads: int = 1
    rows: int | None = None
    least: int = 1


class Engine(Protocol):
    """What the session asks of a file; `Local` is the one of this process. Rows are in the file's order."""

    def type_name(self, name: str) -> str:
        """ggml's name for what a tensor is stored as, e.g. "q4_0"."""

    def weights(self, name: str, rows: NDArray[np.int64] | None = None) -> Floats:
        """ggml's own decode of a tensor, or of some rows of it, in that order."""

    def multiply(self, name: str, x: Floats, repack: bool) -> Floats:
        """ggml's own product with a matrix: x [m, in] -> [m, out]. Raises RuntimeAbsent where it has no such layout."""

    def logits(self, tokens: Sequence[int]) -> Floats:
        """See `Model.logits`."""

    def logits_with(self, prompts: Sequence[Sequence[int]], threads: int, rows: int) -> list[Floats]:
        """`logits` of each prompt, under other settings (`Model.under`)."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """See `Model.generate`."""

    def replay(self, tokens: Sequence[int], more: int, see: Callable[[Seen], None] | None) -> Floats:
        """See `Model.replay`; ``see`` is told of every quantized product. Raises RuntimeAbsent (`Tap`)."""

    def hold(self, artifact: "Artifact", expected: Mapping[str, "QTensor"]) -> None:
        """What `reproduce` is to compute again: the file, read back, with these integers. Raises RuntimeAbsent."""

    def reproduce(self, tokens: Sequence[int], more: int) -> Iterator["Reproduction"]:
        """See `edgeqaf.replay.Reproduces`."""

    def encode(self, text: str) -> list[int]:
        """See `Model.encode`."""

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Model.decode`."""


class Local:
    """An `Engine`; resources: closes what it opens.

    Opening parses the file. The whole model is loaded at the first question that needs it, so that
    asking for single matrices takes the memory of one matrix.
    """

    def __init__(self, library: Library, path: Path, setting: Setting, resources: ExitStack) -> None:
        self._library, self._path, self._setting, self._resources = library, path, setting, resources
        self._file = GgufFile(library, path)
        resources.callback(self._file.close)
        self._backend = Gpu(library) if library.gpu is not None else Cpu(library, setting.threads)
        resources.callback(self._backend.close)
        self._matrix: tuple[str, bool, Matrix] | None = None
        resources.callback(self._drop_matrix)
        self._extra = self._backend.buffer_types(repack=True)

    def type_name(self, name: str) -> str:
        return self._file.tensor(name).type_name

    def weights(self, name: str, rows: NDArray[np.int64] | None = None) -> Floats:
        tensor = self._file.tensor(name)
        return self._file.decode(tensor if rows is None else tensor.rows(rows))

    def multiply(self, name: str, x: Floats, repack: bool) -> Floats:
        matrix, most = self._loaded(name, repack), self._setting.rows or ROWS
        return np.concatenate([self._product(matrix, x[start : start + most]) for start in range(0, len(x), most)])

    def logits(self, tokens: Sequence[int]) -> Floats:
        return self._model.logits(tokens)

    def logits_with(self, prompts: Sequence[Sequence[int]], threads: int, rows: int) -> list[Floats]:
        with self._model.under(threads=threads, rows=rows):
            return [self._model.logits(tokens) for tokens in prompts]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        return self._model.generate(prompts, max_new_tokens)

    def replay(self, tokens: Sequence[int], more: int, see: Callable[[Seen], None] | None) -> Floats:
        if see is None:
            return self._model.replay(tokens, more)
        with self._model.tapped(Tap(self._library, see, self._extra)):
            return self._model.replay(tokens, more)

    def hold(self, artifact: "Artifact", expected: Mapping[str, "QTensor"]) -> None:
        from runtime_tests.ggml.forward.reproduction import Reproducer
        from runtime_tests.ggml.kernels import Kernels

        assert isinstance(self._backend, Cpu)
        kernels = Kernels(self, artifact)
        self._reproducer = Reproducer(self._backend, self._file, artifact, expected, kernels, self._setting.repack)

    def reproduce(self, tokens: Sequence[int], more: int) -> Iterator["Reproduction"]:
        return self._reproducer.reproduce(self._model, tokens, more)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._model.decode(tokens)

    @cached_property
    def _model(self) -> Model:
        setting = self._setting
        model = Model(self._library, self._path, setting.repack, setting.threads, setting.rows)
        self._resources.callback(model.close)
        return model

    def _product(self, matrix: Matrix, x: Floats) -> Floats:
        missing = max(self._setting.least - len(x), 0)
        return matrix.multiply(np.pad(x, ((0, missing), (0, 0))))[: len(x)]

    def _loaded(self, name: str, repack: bool) -> Matrix:
        """The matrix ``name`` in its buffer; the last one asked for is kept, for batches of probes."""
        if self._matrix is None or self._matrix[:2] != (name, repack):
            self._drop_matrix()
            self._matrix = name, repack, Matrix(self._backend, self._file.tensor(name), repack)
        return self._matrix[2]

    def _drop_matrix(self) -> None:
        if self._matrix:
            self._matrix[2].close()
        self._matrix = None
