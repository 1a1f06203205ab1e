"""QA-LoRA (arXiv 2309.14717): a block-wise matrix of low rank, absorbed by the zeros.

    M = B A / sqrt(r),   A ~ N(0, 1) [r, in / group],  B = 0 [out, r]      (`edgeqaf.blockwise` for the rest)

The paper's equation (section 3.3) is y += s pool(x) A^T B^T with zeros' = zeros - s (B A) / scale; here
1 / sqrt(r) is its s, and the default unit of M is the code step. The product is computed exactly
(`edgeqaf.exact`), because the zeros round by it.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.blockwise import Blockwise, BlockwiseOptions
from edgeqaf.exact import exact_product, require_exact
from edgeqaf.gradient import straight_through
from edgeqaf.method import Course, Method, adamw, parts
from edgeqaf.packed import Packed


class QaLora(Blockwise):
    """One layer's factors: a [r, in / group], b [out, r]."""

    def __init__(self, base: Packed, options: "QaLoraOptions", generator: torch.Generator) -> None:
        super().__init__(base, options)
        out, groups = self.size
        self.a = nn.Parameter(torch.randn(options.rank, groups, generator=generator))
        self.b = nn.Parameter(torch.zeros(out, options.rank))

    def matrix(self, rows: slice) -> Tensor:
        root = math.sqrt(len(self.a))
        with torch.no_grad():
            # Not div_: a GPU takes a quotient by a number for a product with its inverse.
            exact = exact_product(self.b[rows], self.a).mul_(1 / root).float()
        if not torch.is_grad_enabled():
            return exact
        return straight_through(self.b[rows] @ self.a / root, exact)


class QaLoraOptions(BlockwiseOptions):
    """rank: r; the rest as for every block-wise method."""

    rank: int = Field(16, ge=1)


class QaLoraMethod(Method):
    """See the module's docstring."""

    options = QaLoraOptions

    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> QaLora:
        require_exact("qa_lora", options.rank)
        return QaLora(base, options, generator)

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        return adamw((p for _, part in parts(model, QaLora) for p in part.parameters()), options.lr, course)


adapter = QaLoraMethod()
