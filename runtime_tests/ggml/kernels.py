"""Which arithmetic each quantized matrix of an artifact meets in this llama.cpp; identified once a case."""

from dataclasses import replace

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.protocols import Artifact, Stored
from edgeqaf.qtensor import QTensor
from runtime_tests.ggml.emulate.paths import Path
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.identify import identify
from runtime_tests.ggml.matmul import Cpu, Matrix

Case = tuple[int, tuple[int, ...], bool, int]  # ggml's type, shape, whether it is repacked, rows


class Kernels:
    """Of one artifact. A kernel is identified once for each type, shape, place and number of rows."""

    def __init__(self, cpu: Cpu, file: GgufFile, artifact: Artifact) -> None:
        self._cpu, self._file, self._artifact = cpu, file, artifact
        nothing = np.empty(0, np.float32)  # a stored tensor is read anew each time; here its place will do
        self._stored = {s.name: (name, replace(s, tensor=nothing)) for name, s, _ in artifact.quantized()}
        self._paths: dict[Case, Path | None] = {}
        self._places: dict[tuple[int, tuple[int, ...]], bool] = {}

    def stored(self, name: str) -> tuple[str, Stored]:
        """Logical name and place of the quantized tensor that the file calls ``name``; Refused where there is none."""
        if name not in self._stored:
            raise Refused(
                f"{self._artifact.path}: llama.cpp multiplies with {name}, which was not read back",
                "export the model again",
            )
        return self._stored[name]

    def repacked(self, name: str) -> bool:
        """Whether one of the CPU's extra buffers takes the matrix, as it does wherever llama.cpp may repack."""
        tensor = self._file.tensor(name)
        kind = tensor.type, tensor.shape
        if kind not in self._places:
            try:
                Matrix(self._cpu, tensor, repack=True).close()
                self._places[kind] = True
            except RuntimeAbsent:
                self._places[kind] = False
        return self._places[kind]

    def path(self, name: str, repacked: bool, rows: int) -> Path | None:
        """The arithmetic of products of ``rows`` rows with the matrix ``name``, or None if it is unknown.

        By the file's own integers, whatever the model is held against.
        """
        tensor = self._file.tensor(name)
        case = tensor.type, tensor.shape, repacked, rows
        if case not in self._paths:
            logical, _ = self.stored(name)
            stored = self._artifact.tensors[logical]
            assert isinstance(stored.tensor, QTensor)
            matrix = Matrix(self._cpu, tensor, repacked)

            def multiply(x: Floats) -> Floats:
                y: Floats = stored.in_logical_order(matrix.multiply(x).T).T
                return y

            try:
                self._paths[case] = identify(multiply, tensor.type_name, stored.tensor, rows)
            finally:
                matrix.close()
        return self._paths[case]
