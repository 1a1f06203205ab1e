"""A model's tensors as its graph uses them: rows of the embedding, vectors, and products with matrices."""

from collections.abc import Mapping

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.parts import join, split
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor, decode, to_half
from runtime_tests.ggml.emulate.operands import Operand, operand
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.forward.arithmetic import Arithmetic
from runtime_tests.ggml.kernels import Kernels

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


class Weights:
    """By the file's names, rows in the file's order. Quantized tensors have the integers of ``expected``.

    Each is read and laid out once, at first use: a byte for a quantized weight, four for a float.
    """

    def __init__(
        self, file: GgufFile, artifact: Artifact, expected: Mapping[str, QTensor], kernels: Kernels,
        arithmetic: Arithmetic, repack: bool,
    ) -> None:  # fmt: skip
        self._file, self._artifact, self._expected = file, artifact, expected
        self._kernels, self._arithmetic, self._repack = kernels, arithmetic, repack
        self._logical = {stored.name: name for name, stored in artifact.tensors.items()}
        self._operands: dict[str, Operand] = {}
        self._columns: dict[str, Floats] = {}
        self._vectors: dict[str, Floats | None] = {}
        self._embedding: QTensor | Floats | None = None

    def embedded(self, tokens: list[int]) -> Floats:
        """float32 [m, hidden]."""
        if self._embedding is None:
            self._embedding = self._integers(EMBEDDING) if self._is_quantized(EMBEDDING) else self._floats(EMBEDDING)
        rows = self._embedding
        if not isinstance(rows, QTensor):
            return np.ascontiguousarray(rows[tokens])
        found: Floats = decode(join(rows.grid, {part: values[tokens] for part, values in split(rows).items()}))
        return found

    def vector(self, name: str) -> Floats | None:
        """A norm's weights, or a bias, if the file has it."""
        if name not in self._vectors:
            self._vectors[name] = self._floats(name) if name in self._logical else None
        return self._vectors[name]

    def multiply(self, name: str, x: Floats) -> Floats:
        """x float32 [m, in] by the matrix ``name``: float32 [m, out]. The head is the embedding, if it has no own."""
        name = EMBEDDING if name == HEAD and HEAD not in self._logical else name
        return self._by_integers(name, x) if self._is_quantized(name) else self._by_floats(name, x)

    def _by_integers(self, name: str, x: Floats) -> Floats:
        repacked = self._repack and self._kernels.repacked(name)
        path, tensor = self._kernels.path(name, repacked, len(x)), self._file.tensor(name)
        if path is None:
            place = "repacked" if repacked else "plain"
            raise RuntimeAbsent(
                f"the arithmetic of {tensor.type_name} {place}, {len(x)} rows, is not known", "R3 has a bound for it"
            )
        if name not in self._operands:
            self._operands[name] = operand(self._integers(name))
        return path.apply(self._operands[name], tensor.shape[0], x)

    def _by_floats(self, name: str, x: Floats) -> Floats:
        tensor = self._file.tensor(name)
        products = {"f32": self._arithmetic.single, "f16": self._arithmetic.half}.get(tensor.type_name)
        if products is None:
            raise RuntimeAbsent(f"products with {tensor.type_name} are not written again", "R3 has those with integers")
        if name not in self._columns:
            self._columns[name] = np.ascontiguousarray(self._floats(name).T)
        order = products.order(len(x), x.shape[1], tensor.shape[0], contiguous=True)
        return order.product(to_half(x) if tensor.type_name == "f16" else x, self._columns[name])

    def _is_quantized(self, name: str) -> bool:
        return self._logical[name] in self._expected

    def _integers(self, name: str) -> QTensor:
        q, stored = self._expected[self._logical[name]], self._artifact.tensors[self._logical[name]]
        return join(q.grid, {part: stored.in_file_order(values) for part, values in split(q).items()})

    def _floats(self, name: str) -> Floats:
        stored = self._artifact.tensors[self._logical[name]]
        floats: Floats = np.asarray(stored.in_file_order(stored.tensor), np.float32)  # type: ignore[arg-type]
        return floats
