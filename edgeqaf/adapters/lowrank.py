"""Low-rank rounding: the codes follow a low-rank matrix, rounded onto the grid.

    codes' = clip(codes + floor(B A / sqrt(r) + 1/2)),   A ~ N(0, 1) [r, in],  B = 0 [out, r]

Like LoRA the trained state is two thin matrices; unlike LoRA the layer never uses anything but the
rounded result, so the loss that training lowers is the loss of the shipped integers. One code step
is the unit: a learning rate of 0.1 moves an entry of B a tenth of a step a step, where LoRA's usual
1e-4 would never cross the rounding threshold of one half.

The product decides how codes round, so it must not depend on the order of a sum. A is snapped to
multiples of 2^-16 and B to multiples of 2^-20, both bounded; their products then fit 53 bits with
room for 64 terms, and a float64 matmul is exact: the same bits on any thread count, rank or device.

Relatives: LR-QAT (arXiv 2406.06385) and NNCF's Q(W + BA); here the base is integers alone.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.errors import UsageError
from edgeqaf.grid import Slot
from edgeqaf.method import Method, Options, warm_hold_decay
from edgeqaf.nn import inward
from edgeqaf.qtensor import Delta, QTensor

A_STEP, A_BOUND = 2.0**-16, 2.0**5
B_STEP, B_BOUND = 2.0**-20, 2.0**6
MAX_RANK = 64  # 21 + 26 bits a product, 6 more for the sum: 53, what float64 holds exactly


def exact_product(b: Tensor, a: Tensor) -> Tensor:
    """float64 [out, in]: B [out, r] @ A [r, in] of the snapped factors, with no rounding anywhere."""
    return _snap(b, B_STEP, B_BOUND) @ _snap(a, A_STEP, A_BOUND)


class RoundedProduct(torch.autograd.Function):
    """codes, B, A -> the change of codes, float32 integers [out, in], within the grid.

    Backward is straight-through: the gradient of the product, dropped where a saturated code would be
    pushed further outward.
    """

    @staticmethod
    def forward(ctx: Any, codes: Tensor, b: Tensor, a: Tensor, lo: int, hi: int) -> Tensor:
        steps = exact_product(b, a).div_(math.sqrt(len(a))).add_(0.5).floor_()
        wanted = steps.float().add_(codes)
        outside = (wanted > hi).to(torch.int8) - (wanted < lo).to(torch.int8)
        ctx.save_for_backward(b, a, outside)
        return wanted.clamp_(lo, hi).sub_(codes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        b, a, outside = ctx.saved_tensors
        grad = inward(grads[0], outside) / math.sqrt(len(a))
        return None, grad @ a.T, b.T @ grad, None, None


def _snap(x: Tensor, step: float, bound: float) -> Tensor:
    return (x.double() / step).round().clamp(-bound / step, bound / step) * step


class LowRank(nn.Module):
    """One layer's factors."""

    writes = frozenset({Slot.CODES})

    def __init__(self, q: QTensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, inputs = q.shape
        self.a = nn.Parameter(torch.randn(rank, inputs, generator=generator))
        self.b = nn.Parameter(torch.zeros(out, rank))

    def delta(self, q: QTensor) -> Delta:
        """codes: float32 integers [out, in]; saturated entries get no gradient further outward."""
        codes: Tensor = RoundedProduct.apply(q.codes, self.b, self.a, q.grid.lo, q.grid.hi)  # type: ignore[no-untyped-call]
        return Delta(codes=codes)


class LowRankOptions(Options):
    """rank: r, at most 64. lr: code steps per optimizer step; 0.1 for tasks, 0.03 to recover a base."""

    rank: int = 16
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)


class LowRankMethod(Method):
    """See the module's docstring."""

    options = LowRankOptions

    def layer(self, q: QTensor, options: Any, generator: torch.Generator) -> LowRank:
        if not 1 <= options.rank <= MAX_RANK:
            raise UsageError(
                f"lowrank: rank {options.rank} is outside 1..{MAX_RANK}", "beyond it the product is not exact"
            )
        return LowRank(q, options.rank, generator)

    def optimizer(self, parameters: list[Tensor], options: Any, steps: int) -> tuple[torch.optim.Optimizer, Any]:
        adam = torch.optim.AdamW(parameters, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
        return adam, warm_hold_decay(adam, steps)


adapter = LowRankMethod()
