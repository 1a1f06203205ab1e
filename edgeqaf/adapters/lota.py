"""LoTA-QAF: ternary factors whose thresholded product moves codes by one (arXiv 2505.18724, section 3.2).

    codes' = codes + sign(B A) * 1[|B A| > omega],   A in {-1, 0, 1} [r, in],  B in {-1, 0, 1} [out, r]

A starts as a Kaiming normal sample ternarized at 0.75 times its mean magnitude, B at zero; a move
that would leave the grid is masked. Factors are trained by t-SignSGD (`edgeqaf.optim`).

The published threshold omega = 0.75 r is so high that next to nothing moves: 0.02 to 0.1 % of codes
in our runs (docs/log.md). By default omega is therefore chosen per layer, at every step, as the
threshold that moves a share ``move_rate`` of its codes. ``paper=true`` gives the published setting.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from edgeqaf.grid import Slot
from edgeqaf.method import Method, Options
from edgeqaf.nn import qlinears, straight_through
from edgeqaf.optim import TSignSGD
from edgeqaf.qtensor import Delta, QTensor


class Lota(nn.Module):
    """One layer's ternary factors, held in float32 because autograd needs it."""

    writes = frozenset({Slot.CODES})

    def __init__(
        self, q: QTensor, rank: int, omega: float | None, move_rate: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        out, inputs = q.shape
        self.fixed_omega, self.move_rate = None if omega is None else omega * rank, move_rate
        self.a = nn.Parameter(ternary(torch.randn(rank, inputs, generator=generator)))
        self.b = nn.Parameter(torch.zeros(out, rank))

    def omega(self, product: Tensor) -> float:
        """The threshold for this product [out, in] of integers."""
        return self.fixed_omega if self.fixed_omega is not None else omega_for(product, self.move_rate)

    def delta(self, q: QTensor) -> Delta:
        """codes: float32 in {-1, 0, 1} [out, in]; the gradient passes to B A as if it were the product."""
        product = self.b @ self.a  # integers of at most r in magnitude: exact in float32 in any order
        value = product.detach()
        moved = torch.sign(value) * (value.abs() > self.omega(value))
        within = (q.codes + moved).clip(q.grid.lo, q.grid.hi) - q.codes
        return Delta(codes=straight_through(product, within.float()))


def ternary(x: Tensor) -> Tensor:
    """sign(x) where |x| exceeds 0.75 of its mean, else 0 (the rule of Ternary Weight Networks)."""
    return torch.sign(x) * (x.abs() > 0.75 * x.abs().mean())


def omega_for(product: Tensor, move_rate: float) -> float:
    """The half-integer threshold whose share of |product| above it is nearest to ``move_rate``."""
    counts = torch.bincount(product.abs().long().flatten())
    above = 1 - torch.cumsum(counts, 0).double() / product.numel()  # above[k]: share with |product| > k
    return int((above - move_rate).abs().argmin()) + 0.5


class LotaOptions(Options):
    """The method's settings.

    rank: r. move_rate: share of codes a layer may move. omega: a fixed threshold in units of r
    instead. momentum, schedule: of t-SignSGD. paper: omega = 0.75, no momentum, linear schedule.
    """

    rank: int = Field(16, ge=1)
    move_rate: float = Field(0.25, gt=0, lt=1)
    omega: float | None = Field(None, ge=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "linear"] = "cosine"
    paper: bool = False


class LotaMethod(Method):
    """See the module's docstring."""

    options = LotaOptions

    def layer(self, q: QTensor, options: Any, generator: torch.Generator) -> Lota:
        omega = 0.75 if options.paper and options.omega is None else options.omega
        return Lota(q, options.rank, omega, options.move_rate, generator)

    def optimizer(self, parameters: list[Tensor], options: Any, steps: int) -> tuple[torch.optim.Optimizer, Any]:
        momentum, schedule = (0.0, "linear") if options.paper else (options.momentum, options.schedule)
        optimizer = TSignSGD(parameters, steps, momentum=momentum, schedule=schedule)
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)

    def describe(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """The threshold of each layer."""
        layers = {name: layer.adapter for name, layer in qlinears(model).items()}
        return {name: {"omega": a.omega((a.b @ a.a).detach())} for name, a in layers.items()}


adapter = LotaMethod()
