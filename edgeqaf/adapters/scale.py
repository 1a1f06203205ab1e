"""Tuning the scales alone (PEQA, arXiv 2305.14152), each snapped to float16 where it is stored.

    scale' = f16(scale (1 + S)),   S = 0 at the start, kept above -0.95 so that no scale changes sign

One number a block and no codes moved: every task shares the integers. On a symmetric grid it is the
only block-wise method there is. It combines with methods that write codes: ``lowrank+scale``.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.adapter import Adapter
from edgeqaf.gradient import straight_through
from edgeqaf.grid import Slot
from edgeqaf.method import Course, Method, Options, adamw, parts
from edgeqaf.packed import Packed
from edgeqaf.qtensor import Delta, QTensor

LEAST = -0.95


class Scale(Adapter):
    """One layer's factors S, float32 [out, in / block]."""

    writes = frozenset({Slot.SCALE})

    def __init__(self, base: Packed) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros_like(base.scale))

    def delta(self, q: QTensor, rows: slice) -> Delta:
        """scale: scale * S, [rows, in / block]."""
        s = self.s[rows]
        return Delta(scale=q.scale * straight_through(s, s.detach().clamp_min(LEAST)))


class ScaleOptions(Options):
    """lr: relative change of a scale per step, at most."""

    lr: float = Field(0.01, gt=0, allow_inf_nan=False)


class ScaleMethod(Method):
    """See the module's docstring."""

    options = ScaleOptions

    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> Scale:
        return Scale(base)

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        own: list[Tensor] = [p for _, part in parts(model, Scale) for p in part.parameters()]
        return adamw(own, options.lr, course)


adapter = ScaleMethod()
