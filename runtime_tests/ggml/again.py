"""What llama.cpp computed, computed again: each product that a tap sees, by the arithmetic of its kernel."""

from collections.abc import Mapping

from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Product
from runtime_tests.ggml.emulate.envelope import envelope
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.kernels import Kernels
from runtime_tests.ggml.matmul import Cpu
from runtime_tests.ggml.tap import Seen


class Again:
    """Products of one artifact, by the kernels that are identified in this llama.cpp."""

    def __init__(self, cpu: Cpu, file: GgufFile, kernels: Kernels) -> None:
        self._file, self._kernels = file, kernels
        self._extra = cpu.buffer_types(repack=True)

    def product(self, seen: Seen, expected: Mapping[str, QTensor]) -> Product:
        """``seen`` beside the same from the integers of ``expected``. Refused for a matrix the artifact lacks."""
        name, stored = self._kernels.stored(seen.name)
        q = expected[name]
        found = stored.in_logical_order(seen.y.T).T
        rows, repacked = len(seen.x), seen.buffer in self._extra
        path, type_name = self._kernels.path(seen.name, repacked, rows), self._file.tensor(seen.name).type_name
        if path is None:
            place = "repacked" if repacked else "plain"
            where = f"{type_name} {place}, {rows} row{'s' if rows > 1 else ''}"
            return Product(name, where, found, *envelope(q, seen.x))
        return Product(name, f"{type_name} {path.name}", found, path.product(q, seen.x))
