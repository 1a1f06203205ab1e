"""The difference of two models, tensor by tensor, in stored integers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Tensor
from edgeqaf.parts import CODES, split
from edgeqaf.qtensor import QTensor


@dataclass(frozen=True)
class Change:
    """One differing tensor. codes, parameters: how many differ (scales and zeros; or floats); weights: in all."""

    name: str
    what: str
    codes: int
    parameters: int
    weights: int


def opened(path: Path) -> QModel:
    """The tensors of a model folder or a GGUF file; raises Refused for anything else."""
    if path.suffix == ".gguf":
        return QModel({}, plugins.find("exporters", "gguf").tensors(path), path)
    return checkpoint.load(path)


def differences(a: QModel, b: QModel) -> Iterator[tuple[str, Change | None]]:
    """Every tensor's name, and how it differs; one pair of tensors is in memory at a time."""
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        yield name, difference(name, a.tensors.get(name), b.tensors.get(name))


def difference(name: str, x: Tensor | None, y: Tensor | None) -> Change | None:
    """How two tensors of that name differ, or None if they are the same, bit for bit; None as one: it is absent."""
    if x is None or y is None:
        return Change(name, f"only in the {'first' if y is None else 'second'}", 0, 0, 1)
    weights = int(np.prod(x.shape))
    if isinstance(x, QTensor) != isinstance(y, QTensor) or x.shape != y.shape:
        return Change(name, "another grid or shape", weights, 0, weights)
    if not isinstance(x, QTensor) or not isinstance(y, QTensor):
        changed = int((np.asarray(x).view(np.uint32) != np.asarray(y).view(np.uint32)).sum())
        return Change(name, "float values", 0, changed, weights) if changed else None
    if x.grid != y.grid:
        return Change(name, f"grid {x.grid.name} against {y.grid.name}", weights, 0, weights)
    others = split(y)
    differing = {part: int((_bits(array) != _bits(others[part])).sum()) for part, array in split(x).items()}
    codes = differing.pop(CODES)
    parameters = sum(differing.values())
    return Change(name, "codes" if codes else "parameters", codes, parameters, weights) if codes or parameters else None


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """As unsigned integers: two zeros of different sign differ."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")
