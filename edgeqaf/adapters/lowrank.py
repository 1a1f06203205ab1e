"""Low-rank rounding: the codes follow a low-rank matrix, rounded onto the grid.

    codes' = clip(codes + floor(e0 / 128 + (u_o / s) B A / sqrt(r) + 1/2)),   A ~ N(0, 1) [r, in],  B = 0 [out, r]

Like LoRA the trained state is two thin matrices; unlike LoRA the layer never uses anything but the
rounded result, so the loss that training lowers is the loss of the shipped integers. u_o, the mean
magnitude of row o's scales, is the unit: a learning rate of 0.1 moves an entry of B a tenth of a step
a step, where LoRA's usual 1e-4 would never cross the rounding threshold of one half. u_o / s, with s
the block's own scale and its sign, makes it the weights, not the codes, that change by a matrix of low
rank. e0 is 0, or what rounding the float weights left over (``residual``), in 1/128 of a step.

The product decides how codes round, so it must not depend on the order of a sum: it is computed
exactly (`edgeqaf.exact`), the same bits on any thread count, rank or device.

Straight through the rounding, dL/d(B A) = diag(u) dL/dW / sqrt(r): the block's scale cancels. So

    dB = diag(u) dY^T (X A^T) / sqrt(r),        dA = (dY diag(u) B)^T X / sqrt(r)

and dL/dW is never formed: a step costs what LoRA's costs (docs/design/low-rank-in-weights.md).

Relatives: LR-QAT (arXiv 2406.06385) and NNCF's Q(W + BA); here the base is integers alone.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.adapter import Adapter
from edgeqaf.exact import require_exact, rounded_product
from edgeqaf.gradient import Flow, straight_through
from edgeqaf.grid import Slot
from edgeqaf.kernels import accelerated
from edgeqaf.method import Course, Method, Options, adamw, parts
from edgeqaf.nn import QLinear
from edgeqaf.packed import Packed, pack
from edgeqaf.qtensor import Delta, QTensor, fold
from edgeqaf.residual import PARTS, residuals


class LowRank(Adapter):
    """One layer's factors."""

    writes = frozenset({Slot.CODES})

    unit: Tensor
    start: Tensor | None

    def __init__(self, base: Packed, rank: int, residual: bool, generator: torch.Generator) -> None:
        super().__init__()
        out, inputs = base.shape
        self.a = nn.Parameter(torch.randn(rank, inputs, generator=generator))
        self.b = nn.Parameter(torch.zeros(out, rank))
        self.register_buffer("unit", row_unit(base.scale) / math.sqrt(rank), persistent=False)
        self.register_buffer("start", torch.zeros(out, inputs, dtype=torch.int8) if residual else None)

    def delta(self, q: QTensor, rows: slice) -> Delta:
        """codes: float32 integers [rows, in]; differentiated as the product in units of the block's scale."""
        steps_a_unit = self.steps_a_unit(q.scale, rows)
        with torch.no_grad():
            start = None if self.start is None else self.start[rows] / PARTS
            steps = rounded_product(self.b[rows], self.a, steps_a_unit, start)
        if not torch.is_grad_enabled():
            return Delta(codes=steps)
        latent = (self.b[rows] @ self.a).view(*q.scale.shape, q.grid.block) * steps_a_unit.float()[..., None]
        return Delta(codes=straight_through(latent.view(*q.shape), steps))

    def steps_a_unit(self, scale: Tensor, rows: slice) -> Tensor:
        """float64 [rows, in / block]: u / (s sqrt(r)); 0 where no step changes a weight."""
        return torch.where(scale == 0, 0.0, self.unit[rows, None].double() / scale.double())

    def fold_packed(self, base: Packed) -> Packed:
        """`fold` of the whole base, in one pass on a GPU."""
        factor = self.steps_a_unit(base.scale, slice(None))
        return replace(base, codes=fold_product(base, self.b, self.a, factor, self.start))

    def gradients(self, layer: QLinear, flow: Flow) -> list[Tensor | None]:
        """[dA, dB] at LoRA's cost; an entry at the end of the grid counts like any other."""
        a, b = self.a.detach(), self.b.detach() * self.unit[:, None]
        x, dy = flow.x, flow.dy
        grad_b = (dy.T @ (x @ a.T.to(x.dtype))).float() * self.unit[:, None]
        grad_a = ((dy @ b.to(dy.dtype)).T @ x).float()
        return [grad_a, grad_b]


@accelerated
def fold_product(base: Packed, b: Tensor, a: Tensor, factor: Tensor, start: Tensor | None) -> Tensor:
    """Packed codes uint8 [out, in / lanes]: ``base``'s plus `rounded_product` of the same, within the grid.

    b, a: float32 [out, r], [r, in]; factor: float64 [out, in / block]; start: int8 [out, in], in 1/128, or None.
    """
    codes = torch.empty_like(base.codes)
    for rows in base.tiles():
        left = None if start is None else start[rows] / PARTS
        steps = Delta(codes=rounded_product(b[rows], a, factor[rows], left))
        codes[rows] = pack(fold(base.rows(rows), steps).codes.to(torch.int8), base.grid)
    return codes


def row_unit(scale: Tensor) -> Tensor:
    """float32 [out]: the mean magnitude of each row's scales [out, in / block], summed exactly in float64."""
    return scale.double().abs().mean(1).float()


class LowRankOptions(Options):
    """rank: r, at most 64. lr: code steps per optimizer step; 0.1 for tasks, 0.03 to recover a base.

    residual: folder of the float model that the base was quantized from, to start from what rounding left over.
    """

    rank: int = 16
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)
    residual: str = ""


class LowRankMethod(Method):
    """See the module's docstring."""

    options = LowRankOptions

    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> LowRank:
        require_exact("lowrank", options.rank)
        return LowRank(base, options.rank, bool(options.residual), generator)

    def begin(self, model: nn.Module, options: Any) -> None:
        """Measure the residuals, once, at the start of a run; later they come with the adapter file."""
        if not options.residual:
            return
        left_over = residuals(model, Path(options.residual))
        for layer, part in parts(model, LowRank):
            part.start = left_over(layer)
            layer.changed()

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        return adamw((p for _, part in parts(model, LowRank) for p in part.parameters()), options.lr, course)


adapter = LowRankMethod()
