"""How far a run moved the integers, layer by layer, and the guards on it.

A published method can train for hours, lower its loss a little by noise, and leave every stored
integer as it was. So a run in which less than `INERT` of the codes (or zeros, or scales) moved is a failure,
not a result: inert runs measure 0.02 to 0.14 %, the least-moving useful one 4.8 % (docs/log.md).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeqaf.errors import VerificationFailed
from edgeqaf.qtensor import QTensor

if TYPE_CHECKING:  # counting movements in a manifest needs no torch
    from torch import nn

    from edgeqaf.packed import Packed

INERT = 0.005  # share of codes, zeros or scales below which a run changed nothing
EARLY = 0.25  # share of the steps from which so little is worth a word
HOT, FAR, SATURATED = 0.4, 0.03, 0.05  # shares above which recovery runs went wrong (docs/log.md)


@dataclass(frozen=True)
class Movement:
    """Counts for one tensor, or sums over several.

    weights: codes in all; moved: codes that changed; moved_far: by more than one step; saturated and
    saturated_before: codes at either end of the grid; zeros, zeros_moved, scales, scales_moved: how many
    zeros and scales, and how many of them changed.
    """

    weights: int = 0
    moved: int = 0
    moved_far: int = 0
    saturated: int = 0
    saturated_before: int = 0
    zeros: int = 0
    zeros_moved: int = 0
    scales: int = 0
    scales_moved: int = 0

    def __add__(self, other: "Movement") -> "Movement":
        return Movement(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def share(self) -> float:
        """The share of codes that moved, or of zeros or scales where that is more."""
        parts = (self.moved, self.weights), (self.zeros_moved, self.zeros), (self.scales_moved, self.scales)
        return max(moved / max(of, 1) for moved, of in parts)


def movement(before: QTensor, after: QTensor) -> Movement:
    """Compare two torch or numpy QTensors on one grid."""
    steps = abs(after.codes - before.codes)

    def ends(q: QTensor) -> int:
        return _count((q.codes == q.grid.lo) | (q.codes == q.grid.hi))

    return Movement(
        weights=before.size,
        moved=_count(steps > 0),
        moved_far=_count(steps > 1),
        saturated=ends(after),
        saturated_before=ends(before),
        zeros=0 if before.zero is None else before.zero.shape[0] * before.zero.shape[1],
        zeros_moved=0 if before.zero is None else _count(after.zero != before.zero),
        scales=before.scale.shape[0] * before.scale.shape[1],
        scales_moved=_count(after.scale != before.scale),
    )


def _count(where: Any) -> int:
    """How often a torch or numpy array is true."""
    return int(np.count_nonzero(where) if isinstance(where, np.ndarray) else where.count_nonzero())


def layer_movements(model: "nn.Module") -> dict[str, Movement]:
    """Movement of every quantized layer of a model in training, by tensor name."""
    import torch

    from edgeqaf.nn import qlinears

    with torch.no_grad():
        return {name: total(_of_tiles(layer.base, layer.now)) for name, layer in qlinears(model).items()}


def _of_tiles(base: "Packed", now: "Packed") -> Iterator[Movement]:
    """Movements of runs of rows, whose passes stay in a cache."""
    for rows in base.tiles():
        yield movement(_wide(base.rows(rows)), now.rows(rows))


def total(movements: Mapping[str, Movement] | Iterable[Movement]) -> Movement:
    """The sum over all layers."""
    return sum(movements.values() if isinstance(movements, Mapping) else movements, Movement())


def early_hint(moved: Movement, done: float) -> str | None:
    """What to say of a run that has moved next to nothing at the share ``done`` of its steps; None if it is well."""
    if not EARLY <= done < 1 or moved.share >= INERT:
        return None
    return f"only {moved.share:.3%} has moved after {done:.0%} of the steps: raise --lr, or stop"


def hints(moved: Movement) -> list[str]:
    """What a person should know of how far a run has moved the codes."""
    said = []
    far = moved.moved_far / max(moved.weights, 1)
    if moved.moved / max(moved.weights, 1) > HOT or far > FAR:
        said.append(
            f"{moved.moved / moved.weights:.0%} of the codes moved, {far:.1%} by more than one step: well for a new "
            "task, too hot to recover a base; a lower --lr forgets less"
        )
    gained = (moved.saturated - moved.saturated_before) / max(moved.weights, 1)
    if gained > SATURATED:
        said.append(f"codes at the ends of the grid rose by {gained:.1%} of all: a lower --lr, or a wider grid")
    return said


def require_moved(moved: Movement, method: str) -> None:
    """Raise VerificationFailed for an inert run."""
    if moved.share < INERT:
        raise VerificationFailed(
            f"the run is inert: {method} moved {moved.moved} of {moved.weights} codes ({moved.share:.3%}), "
            f"less than {INERT:.1%}",
            "raise --lr or --steps, or use another method (codes); the integers are still the base's",
        )


def _wide(q: QTensor) -> QTensor:
    """int8 codes widened, so that a difference of 8-bit codes cannot wrap."""
    codes: Any = q.codes
    return q.replace(codes=codes.short())
