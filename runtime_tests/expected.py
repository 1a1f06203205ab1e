"""The tensors that runtimes are held against, read when they are asked for."""

from collections.abc import Iterator, Mapping
from typing import Any

from edgeqaf.digest import FLOAT32, Tensor
from edgeqaf.protocols import Artifact, Stored
from edgeqaf.qtensor import QTensor
from edgeqaf.runs import Outline

KEPT = 2**28  # weights of tensors that stay in memory


class Quantized(Mapping[str, QTensor]):
    """The tensors on a grid of an artifact or a model folder, by logical name.

    Small ones are kept once read, as a running model asks for each again and again. A copy in another process starts
    anew.
    """

    def __init__(self, tensors: Mapping[str, Stored] | Mapping[str, Tensor], outline: Outline) -> None:
        self.tensors = tensors
        self._names = sorted(name for name, (grid, _) in outline.items() if grid != FLOAT32)
        self._kept: dict[str, QTensor] = {}

    @classmethod
    def of(cls, artifact: Artifact) -> "Quantized":
        """An artifact's own."""
        return cls(artifact.tensors, artifact.outline())

    def __getitem__(self, name: str) -> QTensor:
        if name in self._kept:
            return self._kept[name]
        found = self.tensors[name]
        tensor = found.tensor if isinstance(found, Stored) else found
        assert isinstance(tensor, QTensor)
        if tensor.size + sum(q.size for q in self._kept.values()) <= KEPT:
            self._kept[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the mixin's would read the tensor

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}
