"""From dL/dW to dL/dDelta: `decode` differentiated as written, `fold` passed straight through."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from edgeqaf.grid import Slot, Zero
from edgeqaf.qtensor import Delta, QTensor


class StraightThrough(torch.autograd.Function):
    """Forward: ``value``. Backward: the gradient goes to ``latent`` unchanged."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(latent: Tensor, value: Tensor) -> Tensor:
    """`StraightThrough` as a function: ``value`` exactly, differentiated as ``latent``."""
    result: Tensor = StraightThrough.apply(latent, value)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class Flow:
    """What passed a layer in one forward and backward: x [n, in] and the gradient dy [n, out] of its output.

    shared: where several adapters ask for the same rows, what was formed for the first.
    """

    x: Tensor
    dy: Tensor
    shared: dict[tuple[int, int], Tensor] | None = None

    def narrowed(self) -> "Flow":
        """The same in bfloat16 where the processor multiplies that several times faster, else as it is.

        Sums are still taken in float32; for a gradient that stochastic rounding will blur this is enough.
        """
        if self.x.dtype is not torch.float32 or not multiplies_bf16(self.x.device.type):
            return self
        return Flow(self.x.bfloat16(), self.dy.bfloat16(), self.shared)

    def weight_gradient(self, rows: slice) -> Tensor:
        """dL/dW of some rows: float32 [rows, in]."""
        key = rows.start, rows.stop
        if self.shared is not None and key in self.shared:
            return self.shared[key]
        found = (self.dy[:, rows].T @ self.x).float()
        if self.shared is not None:
            self.shared[key] = found
        return found

    def whole_gradient(self, tiles: Iterable[slice]) -> Tensor:
        """dL/dW [out, in], float32, of which ``tiles`` are the rows."""
        parts = [self.weight_gradient(rows) for rows in tiles]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether this CPU multiplies bfloat16 by instructions of its own (on a GPU the training's precision decides)."""
    found = torch.cpu.get_capabilities() if device == "cpu" else {}
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def pullback(q: QTensor, grad: Tensor, slots: frozenset[Slot]) -> Delta:
    """dL/dDelta for ``slots``, from dL/dW ``grad`` [out, in] at the folded tensor ``q``.

    `decode` is differentiated as written and `fold`'s rounding as the identity. Entries at the end of
    the grid get no gradient whose descent would push them out: it could not change the weight.
    """
    blocks = grad.view(*q.scale.shape, q.grid.block)
    centre: Any = q.zero[..., None] if q.grid.zero is Zero.CODE and q.zero is not None else q.grid.centre
    parts: dict[Slot, Tensor] = {}
    if Slot.CODES in slots:
        steps = (blocks * q.scale[..., None]).view_as(grad)
        parts[Slot.CODES] = _inward(steps, q.codes, q)
    if Slot.SCALE in slots:
        parts[Slot.SCALE] = (blocks * (q.codes.view_as(blocks) - centre)).sum(-1)
    if Slot.ZERO in slots:
        total = blocks.sum(-1)
        parts[Slot.ZERO] = total if q.grid.zero is Zero.OFFSET else _inward(-total * q.scale, q.zero, q)
    return Delta(codes=parts.get(Slot.CODES), zero=parts.get(Slot.ZERO), scale=parts.get(Slot.SCALE))


def _inward(grad: Tensor, at: Any, q: QTensor) -> Tensor:
    return grad.masked_fill(((at >= q.grid.hi) & (grad < 0)) | ((at <= q.grid.lo) & (grad > 0)), 0)
