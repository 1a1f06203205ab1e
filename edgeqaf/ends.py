"""The two ends of a model, where they are quantized: embedding and head. They are read, never tuned."""

import torch
from torch import Tensor, nn

from edgeqaf.nn import QLinear
from edgeqaf.packed import Packed, packed, weights
from edgeqaf.qtensor import QTensor, decode


class QHead(QLinear):
    """A linear that no method is attached to; always multiplied tile by tile, as a vocabulary's weights are many."""

    tunable = False

    def _few(self, x: Tensor) -> Tensor:
        """Weights are kept for one row alone, which is generation's; the tiles, and so the bits, are the same."""
        flat, now = x.reshape(-1, self.in_features), self.now
        kept = self._kept(x.dtype) if len(flat) == 1 else None
        y = x.new_empty(len(flat), self.out_features)
        for rows in now.tiles():
            tile = weights(now, rows, x.dtype) if kept is None else kept[rows]
            torch.mm(flat, tile.T, out=y[:, rows])
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class QEmbedding(nn.Module):
    """Rows of a quantized matrix, decoded as they are looked up.

    q: a numpy QTensor [tokens, hidden], or packed. factor: what rows are multiplied by, as by Gemma 3; else None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, q: QTensor | Packed, factor: Tensor | None = None) -> None:
        super().__init__()
        self.grid = q.grid
        self.num_embeddings, self.embedding_dim = q.shape
        base = q if isinstance(q, Packed) else packed(q)
        self.register_buffer("codes", base.codes, persistent=False)
        self.register_buffer("scale", base.scale, persistent=False)
        self.register_buffer("zero", base.zero, persistent=False)
        self.register_buffer("factor", factor, persistent=False)

    @property
    def base(self) -> Packed:
        """The matrix, packed."""
        return Packed(self.grid, self.codes, self.scale, self.zero)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., hidden]."""
        flat, zero = ids.reshape(-1), self.zero
        some = Packed(self.grid, self.codes[flat], self.scale[flat], None if zero is None else zero[flat])
        rows: Tensor = decode(some.whole()).view(*ids.shape, -1)
        return rows if self.factor is None else rows * self.factor.to(rows.dtype)  # type: ignore[operator]


def place(model: nn.Module, name: str, q: QTensor | Packed, *, linear: bool, bias: Tensor | None = None) -> nn.Module:
    """Put the tensor ``name`` of a model in the place of its module, and return the module that holds it now.

    linear: whether it is a linear of a decoder layer, which can be tuned.
    """
    path = name.removesuffix(".weight")
    parent, _, child = path.rpartition(".")
    former = model.get_submodule(path)
    made: nn.Module
    if isinstance(former, nn.Embedding):
        made = QEmbedding(q, getattr(former, "embed_scale", None))
    else:
        made = (QLinear if linear else QHead)(q, bias)
    setattr(model.get_submodule(parent), child, made)
    return made
