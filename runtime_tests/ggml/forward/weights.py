"""A model's tensors as its graph uses them: rows of the embedding, vectors, and products with matrices."""

from collections.abc import Mapping

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.parts import join, split
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor, decode
from runtime_tests.ggml.emulate.operands import Operand, operand
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.forward.arithmetic import Arithmetic
from runtime_tests.ggml.forward.attention import halved
from runtime_tests.ggml.kernels import Kernels

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


class Weights:
    """By the file's names, rows in the file's order. Quantized tensors have the integers of ``expected``.

    Laid out once, at first use: a byte for a quantized weight, four for a float.
    """

    def __init__(
        self, file: GgufFile, artifact: Artifact, expected: Mapping[str, QTensor], kernels: Kernels,
        arithmetic: Arithmetic, repack: bool,
    ) -> None:  # fmt: skip
        self._file, self._artifact, self._expected = file, artifact, expected
        self._kernels, self._arithmetic, self._repack = kernels, arithmetic, repack
        self._logical = {stored.name: name for name, stored in artifact.tensors.items()}
        self._quantized: dict[str, Operand] = {}
        self._floats: dict[str, Floats] = {}

    def embedded(self, tokens: list[int]) -> Floats:
        """float32 [m, hidden]."""
        q = self._integers(EMBEDDING)
        if q is None:
            return np.ascontiguousarray(self._float(EMBEDDING)[tokens])
        rows: Floats = decode(join(q.grid, {part: values[tokens] for part, values in split(q).items()}))
        return rows

    def vector(self, name: str) -> Floats | None:
        """A norm's weights, or a bias, if the file has it."""
        return self._float(name) if self._file.has(name) else None

    def multiply(self, name: str, x: Floats) -> Floats:
        """x float32 [m, in] by the matrix ``name``: float32 [m, out]. The head is the embedding, if it has no own."""
        name = name if self._file.has(name) or name != HEAD else EMBEDDING
        return self._by_floats(name, x) if self._integers(name) is None else self._by_integers(name, x)

    def _by_integers(self, name: str, x: Floats) -> Floats:
        repacked = self._repack and self._kernels.repacked(name)
        path = self._kernels.path(name, repacked, len(x))
        tensor = self._file.tensor(name)
        if path is None:
            raise RuntimeAbsent(
                f"the path of {tensor.type_name} {'repacked' if repacked else 'plain'}, {len(x)} rows, is unknown",
                "R3 has a bound for it",
            )
        if name not in self._quantized:
            q = self._integers(name)
            assert q is not None
            self._quantized[name] = operand(q)
        return path.apply(self._quantized[name], tensor.shape[0], x)

    def _by_floats(self, name: str, x: Floats) -> Floats:
        tensor = self._file.tensor(name)
        products = {"f32": self._arithmetic.single, "f16": self._arithmetic.half}.get(tensor.type_name)
        if products is None:
            raise RuntimeAbsent(f"products with {tensor.type_name} are not written again", "R3 has those with integers")
        order = products.order(len(x), x.shape[1], tensor.shape[0], contiguous=True)
        if name not in self._floats:
            self._floats[name] = np.ascontiguousarray(self._float(name).T)
        return order.product(halved(x) if tensor.type_name == "f16" else x, self._floats[name])

    def _integers(self, name: str) -> QTensor | None:
        """The quantized tensor ``name``, or None for a float one."""
        logical = self._logical[name]
        if logical not in self._expected:
            return None
        q, stored = self._expected[logical], self._artifact.tensors[logical]
        if stored.rows is None:
            return q
        return join(q.grid, {part: stored.in_file_order(values) for part, values in split(q).items()})

    def _float(self, name: str) -> Floats:
        stored = self._artifact.tensors[self._logical[name]]
        floats: Floats = np.asarray(stored.in_file_order(stored.tensor), np.float32)  # type: ignore[arg-type]
        return floats
