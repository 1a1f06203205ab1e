"""Block-wise deltas: one number for a block of inputs is what the block's zero can absorb exactly.

    y += M_expanded  pool(x),    M [out / repeat, in / group]
    pool(x)[j] = sum (or mean) of the inputs of group j;  rows of M repeat over ``repeat`` outputs

Adding M[o, j] to every weight of a block is adding it to the block's zero:

    float zero (q4_1):     zero' = f16(zero + s M)               M in code steps, s the block's scale
    integer zero (uint4):  zero' = clip(round(zero - M), lo, hi)

Both roundings happen inside `fold`, in training as in merge. A group is a multiple of the grid's block:
a delta that varies inside a block, as the 4 x 8 tile of QA-HiRA's released code does, is no zero.

``unit="weights"`` reads M as the papers write it, a change of the weights themselves; in code steps a
learning rate means the same on every layer and grid. ``pooling="mean"`` divides M by the group's
length, as the released code of both papers does: the same functions, another step size.
"""

from abc import abstractmethod
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from edgeqaf.adapter import Adapter
from edgeqaf.errors import UsageError
from edgeqaf.gradient import straight_through
from edgeqaf.grid import Slot, Zero
from edgeqaf.method import Options
from edgeqaf.packed import Packed
from edgeqaf.qtensor import Delta, QTensor


class BlockwiseOptions(Options):
    """group: inputs a group has (lambda 1), 0 for the grid's block; repeat: outputs that share a row (lambda 2).

    pooling: sum or mean; unit: of M, code steps or weights; lr: in that unit per optimizer step.
    """

    group: int = Field(0, ge=0)
    repeat: int = Field(1, ge=1)
    pooling: Literal["sum", "mean"] = "sum"
    unit: Literal["steps", "weights"] = "steps"
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)


class Blockwise(Adapter):
    """One layer's matrix M, spread over the blocks: ``size`` is M's shape, [out / repeat, in / group]."""

    writes = frozenset({Slot.ZERO})

    def __init__(self, base: Packed, options: BlockwiseOptions) -> None:
        super().__init__()
        out, inputs = base.shape
        self.blocks, self.repeat, self.unit = blocks_a_group(base, options.group), options.repeat, options.unit
        if out % self.repeat:
            raise UsageError(
                f"repeat={self.repeat} does not divide {out} outputs", "choose 1, or a divisor of every layer"
            )
        length = self.blocks * base.grid.block
        self.factor = 1.0 if options.pooling == "sum" else 1.0 / length
        self.size = out // self.repeat, inputs // length

    @abstractmethod
    def matrix(self, rows: slice) -> Tensor:
        """Some rows of M, [rows, in / group], differentiable."""

    def delta(self, q: QTensor, rows: slice) -> Delta:
        """zero: what the grid's zero absorbs, [rows, in / block]."""
        wide = slice(rows.start // self.repeat, -(-rows.stop // self.repeat))
        matrix = self.matrix(wide).repeat_interleave(self.repeat, 0)
        first = rows.start - wide.start * self.repeat
        rise = matrix[first : first + rows.stop - rows.start].repeat_interleave(self.blocks, 1) * self.factor
        return Delta(zero=absorbed(q, rise if self.unit == "steps" else rise / q.scale))


def absorbed(q: QTensor, steps: Tensor) -> Any:
    """What to add to q's zero so that every weight of a block rises by ``steps`` code steps [out, in / block]."""
    if q.grid.zero is Zero.OFFSET:
        return q.scale * steps
    assert q.zero is not None
    latent = q.zero - steps
    return straight_through(latent, latent.detach().round().clamp(q.grid.lo, q.grid.hi)) - q.zero


def blocks_a_group(base: Packed, group: int) -> int:
    """How many blocks a group of inputs spans; UsageError unless it is a whole number that divides the row."""
    grid = base.grid
    length = group or grid.block
    if length % grid.block:
        raise UsageError(
            f"group={length} is no multiple of {grid.name}'s block of {grid.block}",
            "a delta that varies inside a block is no change of its zero; choose a multiple of the block",
        )
    if base.shape[1] % length:
        raise UsageError(f"group={length} does not divide {base.shape[1]} inputs", f"choose {grid.block}")
    return length // grid.block
