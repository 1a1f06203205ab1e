"""LoTA-QAF: ternary factors whose thresholded product moves codes by one (arXiv 2505.18724, section 3.2).

    codes' = codes + sign(B A) * 1[|B A| > omega],   A in {-1, 0, 1} [r, in],  B in {-1, 0, 1} [out, r]

A starts as a Kaiming normal sample ternarized at 0.75 times its mean magnitude, B at zero; a move
that would leave the grid is masked. Factors are trained by t-SignSGD (`edgeqaf.optim`).

The published threshold omega = 0.75 r is so high that next to nothing moves: 0.02 to 0.1 % of codes
in our runs (docs/log.md). By default omega is therefore chosen per layer, at every step, as the
threshold that moves a share ``move_rate`` of its codes. ``paper=true`` gives the published setting.

On a grid with a float zero the part of B A that the threshold leaves over may go to the block's zero:

    mu = mean over the block of (B A - omega sign(B A) 1[|B A| > omega]);   zero' = f16(zero + s mu)

That is the paper's equation 5 (``offset=paper``). The released code divides mu by omega, and takes the
move as it was masked at the ends of the grid (``offset=code``).
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from edgeqaf.adapter import Adapter
from edgeqaf.errors import GridError
from edgeqaf.gradient import straight_through
from edgeqaf.grid import Slot, Zero
from edgeqaf.method import Course, Method, Options, parts
from edgeqaf.nn import qlinears
from edgeqaf.optim import TSignSGD
from edgeqaf.packed import Packed, tiles
from edgeqaf.qtensor import Delta, QTensor


class Lota(Adapter):
    """One layer's ternary factors, held in float32 because autograd needs it."""

    writes = frozenset({Slot.CODES})

    def __init__(self, base: Packed, options: "LotaOptions", generator: torch.Generator) -> None:
        super().__init__()
        out, inputs = base.shape
        omega = 0.75 if options.paper and options.omega is None else options.omega
        self.fixed_omega, self.move_rate = None if omega is None else omega * options.rank, options.move_rate
        self.offset = options.offset
        if self.offset != "none":
            self.writes = frozenset({Slot.CODES, Slot.ZERO})
        self.a = nn.Parameter(ternary(torch.randn(options.rank, inputs, generator=generator)))
        self.b = nn.Parameter(torch.zeros(out, options.rank))
        self._omega: tuple[Any, float] | None = None

    @torch.no_grad()
    def omega(self) -> float:
        """The threshold that the factors have now; the product [out, in] is one of integers, up to r."""
        if self.fixed_omega is not None:
            return self.fixed_omega
        state = tuple((p.data_ptr(), p._version) for p in (self.a, self.b))
        if self._omega is None or self._omega[0] != state:
            counts = torch.zeros(len(self.a) + 1, dtype=torch.int64)
            for rows in tiles(len(self.b), self.a.shape[1], self.a.device.type):
                size = (self.b[rows] @ self.a).abs_().to(torch.int64)
                counts += torch.bincount(size.flatten(), minlength=len(counts)).cpu()
            self._omega = state, omega_for(counts, self.move_rate)
        return self._omega[1]

    def changed(self) -> None:
        self._omega = None

    def delta(self, q: QTensor, rows: slice) -> Delta:
        """codes: float32 in {-1, 0, 1} [rows, in]; the gradient passes to B A as if it were the product."""
        product = self.b[rows] @ self.a  # integers of at most r in magnitude: exact in float32 in any order
        value, omega = product.detach(), self.omega()
        wanted = torch.sign(value) * (value.abs() > omega)
        within = (q.codes + wanted).clamp(q.grid.lo, q.grid.hi) - q.codes
        codes = straight_through(product, within)
        if self.offset == "none":
            return Delta(codes=codes)
        left = product - omega * (wanted if self.offset == "paper" else within)
        mean = left.view(*q.scale.shape, q.grid.block).mean(-1)
        return Delta(codes=codes, zero=q.scale * (mean if self.offset == "paper" else mean * (1 / omega)))


def ternary(x: Tensor) -> Tensor:
    """sign(x) where |x| exceeds 0.75 of its mean, else 0 (the rule of Ternary Weight Networks)."""
    return torch.sign(x) * (x.abs() > 0.75 * x.abs().mean())


def omega_for(counts: Tensor, move_rate: float) -> float:
    """The half-integer threshold whose share of |product| above it is nearest to ``move_rate``.

    counts: how many entries of the product have magnitude 0, 1, 2, ...
    """
    above = 1 - torch.cumsum(counts, 0).double() / counts.sum()  # above[k]: share with |product| > k
    return int((above - move_rate).abs().argmin()) + 0.5


class LotaOptions(Options):
    """The method's settings.

    rank: r. move_rate: share of codes a layer may move. omega: a fixed threshold in units of r
    instead. offset: what is left over goes to a float zero, by the paper's formula or by the released
    code's. momentum, schedule: of t-SignSGD. paper: omega = 0.75, no momentum, linear schedule.
    """

    rank: int = Field(16, ge=1)
    move_rate: float = Field(0.25, gt=0, lt=1)
    omega: float | None = Field(None, ge=0, allow_inf_nan=False)
    offset: Literal["none", "paper", "code"] = "none"
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "linear", "released"] = "cosine"
    paper: bool = False


class LotaMethod(Method):
    """See the module's docstring."""

    options = LotaOptions

    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> Lota:
        if options.offset != "none" and base.grid.zero is not Zero.OFFSET:
            raise GridError(
                f"lota: offset={options.offset} needs a float zero, which grid {base.grid.name} does not have",
                "quantize the base to q4_1, or train without the offset",
            )
        return Lota(base, options, generator)

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        momentum, schedule = (0.0, "linear") if options.paper else (options.momentum, options.schedule)
        own = [p for _, part in parts(model, Lota) for p in part.parameters()]
        optimizer = TSignSGD(own, course.steps, momentum=momentum, schedule=schedule)
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)

    def describe(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """The threshold of each layer."""
        layers = {name: layer.adapter for name, layer in qlinears(model).items()}
        found = {n: p for n, a in layers.items() for p in a.modules() if isinstance(p, Lota)}
        return {name: {"omega": part.omega()} for name, part in found.items()}


adapter = LotaMethod()
