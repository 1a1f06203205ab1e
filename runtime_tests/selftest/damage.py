"""Which tensor gets which defect, and the model that then has them: several at a time, each in tensors of its own."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from edgeqaf.checkpoint import QModel
from edgeqaf.digest import FLOAT32, Tensor, tensor_digest
from edgeqaf.parts import join, split
from edgeqaf.qtensor import QTensor, check
from edgeqaf.runs import ByRows, Outline, Rows, kind_of, rows_in
from runtime_tests.selftest.registry import Kind, Random, Target

SPARE = 4  # times as many matrices as there are kinds to choose from, the smallest: what bounds the time


@dataclass(frozen=True)
class Defect:
    """A kind in its place: the tensors that are damaged, by logical name."""

    kind: Kind
    tensors: tuple[str, ...] = ()


class Overlaid(Mapping[str, Tensor]):
    """Some tensors in place of those of the same names."""

    def __init__(self, below: Mapping[str, Tensor], above: Mapping[str, Tensor]) -> None:
        self._below, self._above = below, above

    def __iter__(self) -> Iterator[str]:
        return iter(self._below)

    def __len__(self) -> int:
        return len(self._below)

    def __contains__(self, name: object) -> bool:
        return name in self._below

    def __getitem__(self, name: str) -> Tensor:
        return self._above[name] if name in self._above else self._below[name]

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        below = self._below
        return below.rows(name) if name not in self._above and isinstance(below, ByRows) else rows_in(self[name], name)

    def outline(self) -> Outline:
        """`edgeqaf.runs.Outlined`."""
        of = getattr(self._below, "outline", None)
        return of() if of else {name: kind_of(tensor) for name, tensor in self._below.items()}


def random(seed: int, *words: str) -> Random:
    """Numbers that follow from the seed and some words."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in words)])


def placed(kinds: Sequence[Kind], outline: Outline, rng: Random) -> list[list[Defect]]:
    """Every kind in tensors of its own, in as few models as have room; a kind that fits nowhere is left out."""
    quantized = sorted((n for n, (grid, _) in outline.items() if grid != FLOAT32), key=lambda n: prod(outline[n][1]))
    quantized = quantized[: SPARE * len(kinds)]
    order = [quantized[i] for i in rng.permutation(len(quantized))]
    others = [name for name, (grid, _) in outline.items() if grid == FLOAT32]
    order += [others[i] for i in rng.permutation(len(others))]
    models: list[list[Defect]] = []
    for kind in sorted(kinds, key=lambda k: not (k.among or k.square)):  # those that are choosy first
        fresh: list[Defect] = []
        for made in [*models, fresh]:
            used = {name for defect in made for name in defect.tensors}
            found = _room(kind, [name for name in order if name not in used], outline)
            if found:
                made.append(Defect(kind, found))
                models += [fresh] if made is fresh else []
                break
    return models


def _room(kind: Kind, free: Sequence[str], outline: Outline) -> tuple[str, ...]:
    """The tensors that a kind takes of those that are free; none where it does not fit."""
    wanted = [n for n in free if (outline[n][0] == FLOAT32) == (kind.target is Target.FLOATS)]
    fitting = [n for n in wanted if kind.fits(n, outline[n][1])]
    if kind.target is not Target.PAIR:
        return tuple(fitting[:1])
    pairs = ((a, b) for i, a in enumerate(fitting) for b in fitting[i + 1 :] if outline[a] == outline[b])
    return next(pairs, ())


def damaged(model: QModel, defects: Sequence[Defect], seed: int) -> tuple[QModel, list[Defect]]:
    """The model with the defects, and those of them that made a difference: some grids have nothing to damage."""
    above: dict[str, Tensor] = {}
    real = []
    for defect in defects:
        made = _apply(defect, model, random(seed, defect.kind.name, *defect.tensors))
        if made and all(tensor_digest(n, t) != tensor_digest(n, model.tensors[n]) for n, t in made.items()):
            above |= made
            real.append(defect)
    return replace(model, tensors=Overlaid(model.tensors, above), manifest={}), real


def _apply(defect: Defect, model: QModel, rng: Random) -> dict[str, Tensor]:
    """The damaged tensors by name; none where there is nothing to damage."""
    tensors = [model.tensors[name] for name in defect.tensors]
    if defect.kind.target is Target.FLOATS:
        (values,) = (np.array(t) for t in tensors)
        return {} if defect.kind.apply(values, rng) is False else {defect.tensors[0]: values}
    quantized = [t for t in tensors if isinstance(t, QTensor)]
    parts = [{part: array.copy() for part, array in split(q).items()} for q in quantized]
    more = () if defect.kind.target is Target.PAIR else (quantized[0].grid, rng)
    if defect.kind.apply(*parts, *more) is False:
        return {}
    made = zip(defect.tensors, quantized, parts, strict=True)
    return {name: check(join(q.grid, edited), f"{name}, {defect.kind.name}") for name, q, edited in made}
