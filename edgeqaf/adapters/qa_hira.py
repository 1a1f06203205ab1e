"""QA-HiRA (arXiv 2407.17029, v1): a block-wise matrix, trained entry by entry, that the zeros absorb.

    zero' = zero (+) M_expanded,   M = 0 at the start       (`edgeqaf.blockwise` says how, on which grids)

lambda 1 of the paper is ``group``, lambda 2 is ``repeat``. Trained on its own, no code moves: tasks
share their integers and differ in zeros alone. ``repeat=1`` is what makes it work (docs/concepts/methods.md).
"""

from typing import Any

import torch
from torch import Tensor, nn

from edgeqaf.blockwise import Blockwise, BlockwiseOptions
from edgeqaf.method import Course, Method, adamw, parts
from edgeqaf.packed import Packed


class Hira(Blockwise):
    """M itself is trained: float32 [out / repeat, in / group]."""

    def __init__(self, base: Packed, options: BlockwiseOptions) -> None:
        super().__init__(base, options)
        self.m = nn.Parameter(torch.zeros(self.size))

    def matrix(self, rows: slice) -> Tensor:
        return self.m[rows]


class QaHiraMethod(Method):
    """See the module's docstring."""

    options = BlockwiseOptions

    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> Hira:
        return Hira(base, options)

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        return adamw((p for _, part in parts(model, Hira) for p in part.parameters()), options.lr, course)


adapter = QaHiraMethod()
