"""Q-BaRA (arXiv 2407.17029, v1): LoRA with pooled inputs and repeated outputs, kept as a baseline.

    y += (alpha / r) repeat(B A pool(x)),   pool: mean of ``pool`` neighbouring inputs, repeat: over as many outputs

With lambda = 2 the two factors have half LoRA's sides, so twice the rank costs the same (section 3.2).
The delta still varies inside a block: no grid holds it, and ``lossless`` is False.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.errors import UsageError
from edgeqaf.method import Baseline, Course, Options, adamw, trainable
from edgeqaf.nn import QLinear, qlinears


class QBara(nn.Module):
    """A quantized layer with the adapter beside it: a [r, in / pool], b [out / pool, r]."""

    def __init__(self, base: QLinear, rank: int, pool: int, factor: float, generator: torch.Generator) -> None:
        super().__init__()
        if base.in_features % pool or base.out_features % pool:
            raise UsageError(
                f"q_bara: pool={pool} does not divide a layer of {base.out_features} x {base.in_features}",
                "choose a divisor of every layer's sides",
            )
        self.base, self.pool, self.factor = base, pool, factor
        bound = math.sqrt(3.0 / (base.in_features // pool))
        start = torch.rand(rank, base.in_features // pool, generator=generator)
        self.a = nn.Parameter((2 * start - 1) * bound)
        self.b = nn.Parameter(torch.zeros(base.out_features // pool, rank))

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.view(*x.shape[:-1], -1, self.pool).mean(-1)
        added = (pooled @ self.a.T) @ self.b.T
        y: Tensor = self.base(x)
        return y + self.factor * added.repeat_interleave(self.pool, -1)

    def delta_weight(self) -> Tensor:
        """float32 [out, in]: what the adapter adds to the weights."""
        small = self.factor / self.pool * (self.b @ self.a)
        return small.repeat_interleave(self.pool, 0).repeat_interleave(self.pool, 1)


class QBaraOptions(Options):
    """rank: of the pooled factors; pool: lambda; alpha: scaling numerator (alpha / rank); lr: AdamW's."""

    rank: int = Field(32, ge=1)
    pool: int = Field(2, ge=1)
    alpha: float = Field(64.0, gt=0, allow_inf_nan=False)
    lr: float = Field(0.002, gt=0, allow_inf_nan=False)


class QBaraMethod(Baseline):
    """See the module's docstring."""

    options = QBaraOptions

    def attach(self, model: nn.Module, options: Any, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, layer in qlinears(model).items():
            path, _, child = name.removesuffix(".weight").rpartition(".")
            beside = QBara(layer, options.rank, options.pool, options.alpha / options.rank, generator)
            setattr(model.get_submodule(path), child, beside)
        return model

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        return adamw(trainable(model).values(), options.lr, course)

    @torch.no_grad()
    def merged_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """float32 [out, in] by tensor name: base plus delta, as a 16-bit merge would store it."""
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, QBara)]
        return {f"{n}.weight": (m.base.weight + m.delta_weight()).bfloat16().float() for n, m in sorted(layers)}


adapter = QBaraMethod()
