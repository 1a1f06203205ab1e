"""The difference of two models, tensor by tensor, in stored integers."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import FLOAT32
from edgeqaf.parts import CODES, Parts
from edgeqaf.runs import Run, cuts, rows_of, threads

Kind = tuple[str, tuple[int, ...]]  # grid, or "float32", and shape


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
    """Every tensor's name, and how it differs; rows of as many pairs are in memory as there are processors."""
    first, second = a.outline(), b.outline()
    names = sorted(first.keys() | second.keys())

    def compared(name: str) -> Change | None:
        change, kind = unlike(name, first.get(name), second.get(name)), first.get(name)
        if change is not None or kind is None:
            return change
        rows = rows_of(a.tensors, name), rows_of(b.tensors, name)
        each = [moved(*(parts_of(read(*run)) for read in rows)) for run in cuts(kind[1])]
        return change_of(name, kind, sum(codes for codes, _ in each), sum(others for _, others in each))

    with ThreadPoolExecutor(threads()) as pool:
        yield from zip(names, pool.map(compared, names), strict=True)


def unlike(name: str, x: Kind | None, y: Kind | None) -> Change | None:
    """How two tensors of that name differ in more than their numbers, if they do; None as one: it is absent."""
    if x is None or y is None:
        return Change(name, f"only in the {'first' if y is None else 'second'}", 0, 0, 1)
    (one, shape), (other, second) = x, y
    weights = prod(shape)
    if (one == FLOAT32) != (other == FLOAT32) or shape != second:
        return Change(name, "another grid or shape", weights, 0, weights)
    return Change(name, f"grid {one} against {other}", weights, 0, weights) if one != other else None


def parts_of(run: Run) -> Parts:
    """The parts of some rows; of floats, one."""
    return run if isinstance(run, Mapping) else {FLOAT32: run}


def moved(x: Parts, y: Parts) -> tuple[int, int]:
    """How many codes differ, bit for bit, and how many other numbers."""
    differing = {part: int(np.count_nonzero(_bits(array) != _bits(y[part]))) for part, array in x.items()}
    return differing.pop(CODES, 0), sum(differing.values())


def change_of(name: str, kind: Kind, codes: int, parameters: int) -> Change | None:
    """The change of so many numbers; None of none."""
    what = "float values" if kind[0] == FLOAT32 else "codes" if codes else "parameters"
    return Change(name, what, codes, parameters, prod(kind[1])) if codes or parameters else None


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """As unsigned integers: two zeros of different sign differ."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")
