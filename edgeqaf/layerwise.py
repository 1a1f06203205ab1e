"""Sequences on their way through a causal language model, one decoder layer's weights in memory at a time.

What a layer is given beside the hidden state (masks, positions, a cache) is learnt from the architecture's own code,
run once for each sequence over layers that only note it. So every layer computes what it would within the whole
model, bit for bit; the head is the whole model again, run over what the last layer gave.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeqaf import digest, plugins
from edgeqaf.memory import give_back
from edgeqaf.modeling import head_of, put, require_plausible, require_whole, skeleton
from edgeqaf.nn import QLinear
from edgeqaf.packed import Packed, packed_by_rows
from edgeqaf.runs import ByRows, Outlined
from edgeqaf.source import EMBEDDING, ENDS, HEAD

LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Walk:
    """The hidden states before one decoder layer: float32 [1, tokens, hidden] of each sequence.

    tensors: logical name -> QTensor or float32 array, asked for the embedding, one layer after the other, and the head;
    float arrays are taken as they are. sequences: token ids, int64 [1, tokens]. use_cache: as transformers has it; by
    default as in a forward of the whole model.
    hidden: of the sequences; model: what of the model is in memory.

    Raises Refused for tensors that are not those of the config, a layer's shapes once it is reached.
    """

    @torch.no_grad()
    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, digest.Tensor], sequences: Sequence[Tensor],
        use_cache: bool | None = None,
    ) -> None:  # fmt: skip
        require_plausible(config, len(tensors))
        self.model = skeleton(config).requires_grad_(False)
        require_whole(self.model, config, tensors)
        self._tensors, self._head = tensors, head_of(config, tensors)
        decoder = self.model.model
        self._layers = list(decoder.layers)
        self._names = _by_layer(tensors, len(self._layers))
        for name in self._names[None]:
            if name not in ENDS:
                put(self.model, name, tensors[name])
        give_back()
        met: list[tuple[Tensor, dict[str, Any]]] = []
        decoder.layers = nn.ModuleList(_Noted(met) for _ in self._layers)
        put(self.model, EMBEDDING, _packed_end(tensors, EMBEDDING))
        self.hidden: list[Tensor] = []
        self._arguments: list[list[dict[str, Any]]] = []  # of each sequence, to each layer
        alike: dict[int, list[dict[str, Any]]] = {}
        for ids in sequences:
            met.clear()
            decoder(input_ids=ids, use_cache=use_cache)
            self.hidden.append(met[0][0])
            given = [arguments for _, arguments in met]
            # Without a cache, masks and positions are those of every sequence of one length.
            self._arguments.append(alike.setdefault(ids.shape[1], given) if use_cache is False else given)
        decoder.embed_tokens = nn.Identity()

    def __len__(self) -> int:
        """How many layers the model has."""
        return len(self._layers)

    def layer(self, index: int) -> nn.Module:
        """The layer in its place in the model, its tensors read unless they are in memory."""
        layer, places = self._layers[index], self.model.model.layers
        if places[index] is not layer:
            places[index] = layer
            for name in self._names[index]:
                put(self.model, name, self._tensors[name])
            for linear in layer.modules():
                if isinstance(linear, QLinear):
                    linear.keeps = False
        return layer  # type: ignore[no-any-return]

    @torch.no_grad()
    def outputs(self, index: int) -> Iterator[Tensor]:
        """What the layer makes of each sequence."""
        layer = self.layer(index)
        for hidden, arguments in zip(self.hidden, self._arguments, strict=True):
            yield layer(hidden, **arguments[index])

    def through(self, index: int) -> None:
        """Go on to the next layer; this one's weights are dropped."""
        for i, hidden in enumerate(self.outputs(index)):
            self.hidden[i] = hidden
        self._layers[index] = self.model.model.layers[index] = nn.Identity()
        give_back()

    @torch.no_grad()
    def logits(self) -> Iterator[Tensor]:
        """float32 [1, tokens, vocabulary] of each sequence, once it has been through every layer."""
        put(self.model, HEAD, _packed_end(self._tensors, self._head))
        for hidden in self.hidden:
            self.model.model.layers = nn.ModuleList([_Found(hidden)])
            yield self.model(inputs_embeds=hidden).logits


def _by_layer(names: Mapping[str, Any], count: int) -> dict[int | None, list[str]]:
    """Sorted names by decoder layer; None for those of no layer that there is."""
    found: dict[int | None, list[str]] = defaultdict(list)
    for name in sorted(names):
        of = LAYER.match(name)
        found[int(of[1]) if of and int(of[1]) < count else None].append(name)
    return found


def _packed_end(tensors: Mapping[str, digest.Tensor], name: str) -> digest.Tensor | Packed:
    """The largest tensors of a model, packed run by run where they are on a grid and can be had so."""
    if not (isinstance(tensors, ByRows) and isinstance(tensors, Outlined)):
        return tensors[name]
    grid, shape = tensors.outline()[name]
    if grid == digest.FLOAT32:
        return tensors[name]
    return packed_by_rows(tensors.rows(name), plugins.find("grids", grid), (shape[0], shape[1]))


class _Noted(nn.Module):
    """In a layer's place: what it would be given, and nothing done to it."""

    def __init__(self, met: list[tuple[Tensor, dict[str, Any]]]) -> None:
        super().__init__()
        self._met = met

    def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
        self._met.append((hidden, arguments))
        return hidden


class _Found(nn.Module):
    """In the place of all layers: what they gave."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, _: Tensor, **arguments: Any) -> Tensor:
        return self._hidden
