"""The difference of two models, tensor by tensor, in stored integers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.checkpoint import QModel
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


def difference(name: str, a: QModel, b: QModel) -> Change | None:
    """How tensor ``name`` differs between two models, or None if it is the same, bit for bit."""
    if name not in a.tensors or name not in b.tensors:
        return Change(name, f"only in the {'first' if name in a.tensors else 'second'}", 0, 0, 1)
    x, y = a.tensors[name], b.tensors[name]
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
