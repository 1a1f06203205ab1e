"""The torch layer: a linear whose weight is ``decode(fold(q, adapter.delta(q)))``, and nothing else.

The gradient reaches an adapter through a straight-through step of its own; everything after it
(`fold`, `decode`, the matmul) is differentiated as written.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgeqaf.errors import GridError
from edgeqaf.grid import Slot
from edgeqaf.qtensor import Delta, QTensor, decode, fold


class Adapter(Protocol):
    """What one layer's adapter promises: which slots it writes, and the delta it proposes."""

    writes: frozenset[Slot]

    def delta(self, q: QTensor) -> Delta:
        """Codes [out, in] and zeros [out, in / block] to add, differentiable in the parameters."""


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


def inward(grad: Tensor, outside: Tensor) -> Tensor:
    """``grad`` where a descent step on it keeps or brings an entry inside the grid, else zero.

    outside: +1 where the entry is above the grid, -1 below, 0 within.
    """
    return grad.masked_fill(outside * grad < 0, 0)


class QLinear(nn.Module):
    """``x @ decode(fold(q, delta)).T + bias`` with x [..., in] -> [..., out].

    q: a numpy QTensor; its parts become buffers that do not train and are not saved.
    """

    def __init__(self, q: QTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.grid = q.grid
        self.out_features, self.in_features = q.shape
        for part in ("codes", "scale", "zero"):
            array = getattr(q, part)
            self.register_buffer(part, None if array is None else torch.from_numpy(array.copy()), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.adapter: Any = None
        self._decoded: Tensor | None = None

    @property
    def q(self) -> QTensor:
        """The base tensor, as torch tensors."""
        return QTensor(self.grid, self.codes, self.scale, self.zero)

    def attach(self, adapter: Adapter) -> None:
        """Train through ``adapter`` from now on; GridError if it writes a slot that the grid lacks."""
        foreign = adapter.writes - self.grid.slots
        if foreign:
            raise GridError(
                f"{type(adapter).__name__} writes {', '.join(sorted(s.value for s in foreign))}, "
                f"which grid {self.grid.name} does not have",
                "choose another method, or quantize the base to a grid with that slot (q4_1 has zero)",
            )
        self.adapter = adapter

    def folded(self) -> QTensor:
        """The tensor with the adapter folded in: what merge will store."""
        return self.q if self.adapter is None else fold(self.q, self.adapter.delta(self.q))

    def weight(self) -> Tensor:
        """float32 [out, in]: the weights of the forward pass."""
        return decode(self.folded())  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return nn.functional.linear(x, self.weight(), self.bias)
        if self._decoded is None:  # generation asks for the same weights at every token
            self._decoded = self.weight()
        return nn.functional.linear(x, self._decoded, self.bias)

    def train(self, mode: bool = True) -> "QLinear":
        self._decoded = None
        return super().train(mode)


def qlinears(model: nn.Module) -> dict[str, QLinear]:
    """The quantized layers of ``model`` by tensor name (``model.layers.0.mlp.up_proj.weight``), sorted."""
    found = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, QLinear)}
    return dict(sorted(found.items()))


def to_numpy(q: QTensor) -> QTensor:
    """A torch QTensor, perhaps float inside a training step, as a numpy QTensor at rest (codes int8)."""
    codes = q.codes.detach().cpu().numpy()
    return QTensor(
        q.grid,
        codes.astype("int8"),
        q.scale.detach().cpu().numpy(),
        None if q.zero is None else q.zero.detach().cpu().numpy(),
    )
