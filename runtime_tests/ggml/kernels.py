"""Which arithmetic each quantized matrix of an artifact meets in this llama.cpp; identified once a case."""

from dataclasses import replace

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.protocols import Artifact, Stored
from edgeqaf.qtensor import QTensor
from runtime_tests.ggml.emulate.paths import Path
from runtime_tests.ggml.engine import Engine
from runtime_tests.ggml.identify import identify

Kind = tuple[str, tuple[int, ...]]  # ggml's type, shape


class Kernels:
    """Of one artifact. A kernel is identified once for each type, shape, place and number of rows."""

    def __init__(self, engine: Engine, artifact: Artifact) -> None:
        self._engine, self._artifact = engine, artifact
        nothing = np.empty(0, np.float32)  # a stored tensor is read anew each time; here its place will do
        self._stored = {s.name: (name, replace(s, tensor=nothing)) for name, s, _ in artifact.quantized()}
        self._shapes = {name: shape for name, (_, shape) in artifact.outline().items()}
        self._paths: dict[tuple[Kind, bool, int], Path | None] = {}
        self._places: dict[Kind, bool] = {}

    def stored(self, name: str) -> tuple[str, Stored]:
        """Logical name and place of the quantized tensor that the file calls ``name``; Refused where there is none."""
        if name not in self._stored:
            raise Refused(
                f"{self._artifact.path}: llama.cpp multiplies with {name}, which was not read back",
                "export the model again",
            )
        return self._stored[name]

    def type_name(self, name: str) -> str:
        """ggml's name for what a tensor is stored as."""
        return self._engine.type_name(name)

    def repacked(self, name: str) -> bool:
        """Whether one of the CPU's extra buffers takes the matrix, as it does wherever llama.cpp may repack."""
        kind = self._kind(name)
        if kind not in self._places:
            try:
                self._engine.multiply(name, np.zeros((1, kind[1][1]), np.float32), repack=True)
                self._places[kind] = True
            except RuntimeAbsent:
                self._places[kind] = False
        return self._places[kind]

    def path(self, name: str, repacked: bool, rows: int) -> Path | None:
        """The arithmetic of products of ``rows`` rows with the matrix ``name``, or None if it is unknown.

        By the file's own integers, whatever the model is held against.
        """
        case = self._kind(name), repacked, rows
        if case not in self._paths:
            stored = self._artifact.tensors[self.stored(name)[0]]
            assert isinstance(stored.tensor, QTensor)

            def multiply(x: Floats) -> Floats:
                y: Floats = stored.in_logical_order(self._engine.multiply(name, x, repacked).T).T
                return y

            self._paths[case] = identify(multiply, self.type_name(name), stored.tensor, rows)
        return self._paths[case]

    def _kind(self, name: str) -> Kind:
        return self.type_name(name), self._shapes[self.stored(name)[0]]
