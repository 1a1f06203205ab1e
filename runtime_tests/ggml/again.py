"""What llama.cpp computed, computed again: each product that a tap sees, by the arithmetic of its kernel."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Product
from runtime_tests.ggml.emulate.envelope import envelope
from runtime_tests.ggml.emulate.paths import Path
from runtime_tests.ggml.engine import Engine
from runtime_tests.ggml.identify import identify
from runtime_tests.ggml.tap import Seen

Case = tuple[int, tuple[int, int], bool, int]  # ggml's type, shape, whether repacked, rows


class Again:
    """Products of one artifact. A kernel is identified once for each type, shape, place and number of rows."""

    def __init__(self, engine: Engine, artifact: Artifact) -> None:
        self._engine, self._artifact = engine, artifact
        nothing = np.empty(0, np.float32)  # a stored tensor is read anew each time; here its place will do
        self._stored = {s.name: (name, replace(s, tensor=nothing)) for name, s, _ in artifact.quantized()}
        self._paths: dict[Case, Path | None] = {}

    def product(self, seen: Seen, expected: Mapping[str, QTensor]) -> Product:
        """``seen`` beside the same from the integers of ``expected``. Refused for a matrix the artifact lacks."""
        if seen.name not in self._stored:
            raise Refused(
                f"{self._artifact.path}: llama.cpp multiplies with {seen.name}, which was not read back",
                "export the model again",
            )
        name, stored = self._stored[seen.name]
        q = expected[name]
        found = stored.in_logical_order(seen.y.T).T
        path, type_name = self._path(seen), self._engine.type_name(seen.name)
        if path is None:
            place, rows = "repacked" if seen.repacked else "plain", len(seen.x)
            where = f"{type_name} {place}, {rows} row{'s' if rows > 1 else ''}"
            return Product(name, where, found, *envelope(q, seen.x))
        return Product(name, f"{type_name} {path.name}", found, path.product(q, seen.x))

    def _path(self, seen: Seen) -> Path | None:
        case = seen.type, seen.shape, seen.repacked, len(seen.x)
        if case not in self._paths:
            self._paths[case] = self._identified(seen)
        return self._paths[case]

    def _identified(self, seen: Seen) -> Path | None:
        """By the file's own integers, whatever the model is held against."""
        stored = self._artifact.tensors[self._stored[seen.name][0]]
        assert isinstance(stored.tensor, QTensor)

        def multiply(x: Floats) -> Floats:
            y: Floats = stored.in_logical_order(self._engine.multiply(seen.name, x, seen.repacked).T).T
            return y

        return identify(multiply, self._engine.type_name(seen.name), stored.tensor, len(seen.x))
