"""What one layer trains: an adapter proposes a `Delta`, and knows the gradient of its parameters."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeqaf.gradient import Flow, pullback
from edgeqaf.grid import Slot
from edgeqaf.packed import Packed, pack
from edgeqaf.qtensor import Delta, QTensor, fold

if TYPE_CHECKING:
    from edgeqaf.nn import QLinear


class Adapter(nn.Module, ABC):
    """One layer's adapter: which slots it writes, and the delta it proposes, tile by tile."""

    writes: frozenset[Slot]

    @abstractmethod
    def delta(self, q: QTensor, rows: slice) -> Delta:
        """What to add to ``q``, which holds the ``rows`` of the base; differentiable in the parameters."""

    def fold_packed(self, base: Packed) -> Packed:
        """`fold` of the whole base with `delta`, tile by tile, packed again."""
        return fold_tiles(base, self)

    def state(self) -> dict[str, Tensor]:
        """Parameters and saved buffers by name: `state_dict` without its hooks, as FSDP's would shard them anew."""
        found: dict[str, Tensor] = {}
        for path, module in self.named_modules():
            module._save_to_state_dict(found, path and f"{path}.", True)
        return found

    def changed(self) -> None:
        """Forget what was derived from the state, which was replaced or edited."""

    def active(self) -> bool:
        """Whether this layer learns from the coming forward."""
        return True

    def gradients(self, layer: "QLinear", flow: Flow) -> list[Tensor | None]:
        """dL/dp of every parameter in order; here through `delta`, one tile at a time."""
        parameters = list(self.parameters())
        sums: list[Tensor | None] = [None] * len(parameters)
        base, now = layer.base, layer.now
        for rows in base.tiles():
            slopes = pullback(now.rows(rows), flow.weight_gradient(rows), self.writes)
            with torch.enable_grad():
                proposed = self.delta(base.rows(rows), rows)
            pairs = [(getattr(proposed, s.value), getattr(slopes, s.value)) for s in sorted(self.writes, key=str)]
            outputs, grads = zip(*((o, g.to(o.dtype)) for o, g in pairs if o.requires_grad), strict=True)
            for i, part in enumerate(torch.autograd.grad(outputs, parameters, grads, allow_unused=True)):
                before = sums[i]
                sums[i] = part if before is None else before if part is None else before + part
        return sums


def fold_tiles(base: Packed, adapter: Adapter) -> Packed:
    """The packed result of folding ``adapter`` into ``base``; slots that it does not write are shared."""
    parts = {Slot.CODES: base.codes, Slot.SCALE: base.scale, Slot.ZERO: base.zero}
    written = {slot: torch.empty_like(parts[slot]) for slot in adapter.writes}  # type: ignore[arg-type]
    for rows in base.tiles():
        q = base.rows(rows)
        folded = fold(q, adapter.delta(q, rows))
        for slot, whole in written.items():
            part = getattr(folded, slot.value)
            whole[rows] = pack(part.to(torch.int8), base.grid) if slot is Slot.CODES else part
    parts |= written
    return Packed(base.grid, parts[Slot.CODES], parts[Slot.SCALE], parts[Slot.ZERO])  # type: ignore[arg-type]
