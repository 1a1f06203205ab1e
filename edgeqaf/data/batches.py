"""Examples to tensors: padded one to a sequence, or packed several to a sequence without seeing each other.

Packed, each example's positions begin at 0 and there is no attention mask: transformers tells the
examples of a sequence apart by their positions (masking_utils.find_packed_sequence_indices), and lets
each attend to itself alone. What fills the rest of a sequence is such an example too, without labels.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeqaf.data.examples import IGNORED, Example
from edgeqaf.errors import Refused

Pack = Sequence[Example]


class Collator:
    """Pads a batch to its longest example: input_ids, attention_mask, labels, each int64 [batch, n]."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        longest = max(len(e.ids) for e in batch)

        def stack(rows: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

        return {
            "input_ids": stack([e.ids for e in batch], self.pad),
            "attention_mask": stack([[1] * len(e.ids) for e in batch], 0),
            "labels": stack([e.labels for e in batch], IGNORED),
        }


class PackedCollator:
    """A batch of packs, filled up to its longest: input_ids, position_ids, labels, each int64 [batch, n].

    The first label of an example is IGNORED, as what stands before it is another example. No cache is
    kept, as with one transformers would not tell the examples apart.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, batch: Sequence[Pack]) -> dict[str, Any]:
        longest = max(_length(pack) for pack in batch)
        full = [[*pack, *self._filling(longest - _length(pack))] for pack in batch]
        return {
            "input_ids": torch.tensor([[i for e in pack for i in e.ids] for pack in full]),
            "position_ids": torch.tensor([[i for e in pack for i in range(len(e.ids))] for pack in full]),
            "labels": torch.tensor([[i for e in pack for i in (IGNORED, *e.labels[1:])] for pack in full]),
            "use_cache": False,
        }

    def _filling(self, length: int) -> list[Example]:
        return [Example([self.pad] * length, [IGNORED] * length)] if length else []


def packs(examples: Sequence[Example], max_length: int) -> list[Pack]:
    """Examples in sequences of at most ``max_length`` tokens: longest first, each into the fullest that has room."""
    made: list[list[Example]] = []
    rooms: list[tuple[int, int]] = []  # (tokens free, which), sorted
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        at = bisect_left(rooms, (len(example.ids), 0))
        if at == len(rooms):
            rooms.append((max_length, len(made)))
            made.append([])
        room, which = rooms.pop(at)
        made[which].append(example)
        insort(rooms, (room - len(example.ids), which))
    return list(made)


@torch.no_grad()
def require_apart(model: nn.Module, name: str) -> None:
    """Refuse to pack for a model whose packed examples see each other.

    Asked of the model itself: the logits of one example must not change by a bit with the tokens of another.
    """
    batches = [
        PackedCollator(0)([[_unlabelled(first), _unlabelled([1, 2, 3])]]) for first in ([1, 2, 3, 4], [4, 3, 2, 1])
    ]
    one, other = (model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, 4:] for batch in batches)
    if not torch.equal(one, other):
        raise Refused(f"packed rows see each other in a {name} model", "train without --packing")


def _unlabelled(ids: list[int]) -> Example:
    return Example(ids, [IGNORED] * len(ids))


def _length(pack: Pack) -> int:
    return sum(len(example.ids) for example in pack)
