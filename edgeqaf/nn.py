"""The torch layer: a linear whose weight is ``decode(fold(q, adapter.delta(q)))``, and nothing else.

Codes stay packed. The fold is taken once for each state of the adapter, and kept packed too; forward
and backward each decode it anew, a tile of rows at a time, so that float weights never exist beyond
one tile. The weight is built in float32 and cast once to the type the activations come in.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgeqaf.adapter import Adapter
from edgeqaf.errors import GridError
from edgeqaf.gradient import Flow
from edgeqaf.grid import Slot
from edgeqaf.packed import Packed, packed, weights
from edgeqaf.qtensor import QTensor, decode

FEW = 64  # rows of activations below which decoding would cost more than multiplying: generation


class GridLinear(torch.autograd.Function):
    """y = x W^T with W decoded tile by tile; see the module's docstring.

    ``pulse`` is a scalar that requires a gradient, so that backward runs for an adapter without
    differentiable parameters.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pulse: Tensor | None, layer: "QLinear", *parameters: Tensor) -> Tensor:
        now = layer.now
        ctx.layer, ctx.now, ctx.edits, ctx.learns = layer, now, layer.edits, pulse is not None
        ctx.save_for_backward(x if ctx.learns else None)
        y = x.new_empty(*x.shape[:-1], layer.out_features)
        flat, out = x.reshape(-1, layer.in_features), y.view(-1, layer.out_features)
        for rows in now.tiles():
            torch.mm(flat, weights(now, rows, x.dtype).T, out=out[:, rows])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):  # the context may still be that of the forward
            return _backward(ctx, grads[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """`GridLinear.backward` in the types that it says, whatever autocast would take."""
    layer, now = ctx.layer, ctx.now
    if ctx.edits != layer.edits:
        raise RuntimeError("a layer's integers changed between its forward and its backward")
    dy = grad.reshape(-1, layer.out_features)
    dx: Tensor | None = None
    if ctx.needs_input_grad[0]:
        first, *others = now.tiles()
        flat = dy[:, first] @ weights(now, first, dy.dtype)
        for rows in others:
            flat.addmm_(dy[:, rows], weights(now, rows, dy.dtype))
        dx = flat.view(*grad.shape[:-1], -1)
    if not ctx.learns:
        return dx, None, None
    (x,) = ctx.saved_tensors
    return dx, None, None, *layer.adapter.gradients(layer, Flow(x.reshape(-1, layer.in_features), dy))


class QLinear(nn.Module):
    """``x @ decode(fold(q, delta)).T + bias`` with x [..., in] -> [..., out].

    q: a numpy QTensor, or packed; its parts become buffers that do not train and are not saved, its codes packed.
    keeps: whether weights decoded for few rows stay in memory for the next ones.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    tunable: ClassVar[bool] = True

    def __init__(self, q: QTensor | Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.grid = q.grid
        self.out_features, self.in_features = q.shape
        base = q if isinstance(q, Packed) else packed(q)
        self.register_buffer("codes", base.codes, persistent=False)
        self.register_buffer("scale", base.scale, persistent=False)
        self.register_buffer("zero", base.zero, persistent=False)
        self.supers = None if isinstance(q, Packed) else q.supers
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.adapter: Any = None
        self.reverted: frozenset[Slot] = frozenset()
        self.edits = 0
        self.keeps = True
        self._folded: tuple[Any, Packed] | None = None
        self._decoded: tuple[Packed, Tensor] | None = None

    @property
    def base(self) -> Packed:
        """The base tensor, packed."""
        return Packed(self.grid, self.codes, self.scale, self.zero)

    @property
    def q(self) -> QTensor:
        """The base tensor, as torch tensors."""
        return replace(self.base.whole(), supers=self.supers)

    @property
    def now(self) -> Packed:
        """The base with the adapter folded in, packed; folded anew when the adapter has changed.

        Slots in ``reverted`` stay the base's (`edgeqaf.attribution`).
        """
        if self.adapter is None:
            return self.base
        state = (self.edits, *((t.data_ptr(), t._version) for t in self.adapter.state().values()))
        if self._folded is None or self._folded[0] != state:
            # Under autocast a product that decides how codes round would be taken in 16 bits.
            with torch.no_grad(), torch.autocast(self.codes.device.type, enabled=False):
                folded = self.adapter.fold_packed(self.base)
            back = {slot.value: getattr(self, slot.value) for slot in self.reverted}
            self._folded = (state, replace(folded, **back))
        return self._folded[1]

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
        self.changed()

    def changed(self) -> None:
        """Say that the adapter's state was replaced or edited."""
        if self.adapter is not None:
            self.adapter.changed()
        self.edits += 1
        self._decoded = None

    def folded(self) -> QTensor:
        """The tensor with the adapter folded in: what merge will store."""
        return replace(self.now.whole(), supers=self.supers)

    @property
    def weight(self) -> Tensor:
        """float32 [out, in]: the weights of the forward pass, decoded for whoever asks."""
        return decode(self.folded())  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if not torch.is_grad_enabled() and x.numel() < FEW * self.in_features:
            return self._few(x)
        learns = self.adapter is not None and self.adapter.active() and torch.is_grad_enabled()
        pulse = torch.zeros((), requires_grad=True) if learns else None
        y: Tensor = GridLinear.apply(x, pulse, self, *(self.adapter.parameters() if learns else ()))  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _few(self, x: Tensor) -> Tensor:
        """The product with few rows of activations, of weights that were decoded as a whole."""
        return nn.functional.linear(x, self._kept(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def _kept(self, dtype: torch.dtype) -> Tensor:
        """The decoded weights, kept while generation asks for them at every token."""
        now, before = self.now, self._decoded
        bare = self.adapter is None  # then `now` is made anew each time, of the same tensors
        same = before is not None and (before[0] is now or (bare and before[0].codes is now.codes))
        if before is None or not same or before[1].dtype != dtype:
            before = now, weights(now, slice(0, self.out_features), dtype)
            self._decoded = before if self.keeps else None
        return before[1]

    def _apply(self, fn: Any, recurse: bool = True) -> "QLinear":
        """``.to(device)`` moves everything; ``.to(dtype)`` stops at scales and zeros, which say what codes mean."""
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            if (moved := getattr(self, name)).dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        self._folded = self._decoded = None
        return self

    def train(self, mode: bool = True) -> "QLinear":
        self._decoded = None
        return super().train(mode)


def qlinears(model: nn.Module) -> dict[str, QLinear]:
    """The layers of ``model`` that can be tuned, by tensor name (``model.layers.0.mlp.up_proj.weight``), sorted."""
    modules = model.named_modules()
    found = {f"{name}.weight": layer for name, layer in modules if isinstance(layer, QLinear) and layer.tunable}
    return dict(sorted(found.items()))


def to_numpy(q: QTensor) -> QTensor:
    """A torch QTensor as a numpy QTensor at rest (codes int8)."""
    codes = q.codes.detach().cpu().numpy()
    return QTensor(
        q.grid,
        codes.astype("int8"),
        q.scale.detach().cpu().numpy(),
        None if q.zero is None else q.zero.detach().cpu().numpy(),
        q.supers,
    )
