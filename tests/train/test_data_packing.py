"""Packed rows do not see each other, and are learned from as they would be alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeqaf.checkpoint import QModel
from edgeqaf.data import IGNORED, Example
from edgeqaf.data.batches import Collator, PackedCollator, packs, require_apart
from edgeqaf.errors import Refused
from edgeqaf.modeling import build

LENGTHS = (9, 21, 4)


@pytest.fixture(scope="module")
def model(tiny_model: QModel) -> nn.Module:
    return build(tiny_model.config, tiny_model.tensors)


def examples(seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, 1000, (n,), generator=generator).tolist() for n in LENGTHS]
    return [Example(i, [IGNORED, *i[1:]]) for i in ids]


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return found


def test_no_bit_of_one_row_s_logits_depends_on_another_row(model: nn.Module) -> None:
    collate = PackedCollator(0)
    a, b, c = examples()
    x, _, z = examples(1)
    middle = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])
    before, after = (logits(model, collate([[*pack]]))[:, middle] for pack in ((a, b, c), (x, b, z)))
    assert torch.equal(before, after)
    filled = logits(model, collate([[a, b], [x, b, z]]))
    assert torch.equal(filled[0, middle], filled[1, middle])


def test_packed_logits_are_those_of_the_rows_alone(model: nn.Module) -> None:
    """Bounded: the same sums over more or fewer columns, so in another order. The token chosen is the same."""
    rows = examples()
    packed = logits(model, PackedCollator(0)([rows]))[0].split(LENGTHS)
    for row, found in zip(rows, packed, strict=True):
        alone = logits(model, Collator(0)([row]))[0]
        assert torch.equal(alone.argmax(-1), found.argmax(-1))
        assert (alone - found).abs().max() < 1e-5 * alone.abs().max()  # float32 has 6e-8 an operation


def test_a_packed_batch_has_the_loss_of_the_padded_one(model: Any) -> None:
    rows = examples()
    with torch.no_grad():
        packed, padded = (model(**batch).loss for batch in (PackedCollator(0)([rows]), Collator(0)(rows)))
    assert abs(packed - padded) < 1e-5 * padded  # one mean over the same tokens, in another order of sums


def test_a_packed_batch_is_what_it_says() -> None:
    a, b, c = examples()
    whole = [Example(e.ids, list(e.ids)) for e in (a, b, c)]
    batch = PackedCollator(7)([whole[:2], whole[2:]])
    assert batch["use_cache"] is False
    assert "attention_mask" not in batch
    assert batch["input_ids"][1].tolist() == c.ids + [7] * 26
    assert batch["position_ids"][0].tolist() == [*range(9), *range(21)]
    assert batch["position_ids"][1].tolist() == [*range(4), *range(26)]
    assert batch["labels"][0].tolist() == a.labels + b.labels
    assert batch["labels"][1].tolist() == c.labels + [IGNORED] * 26


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=80))
def test_every_row_is_packed_once_and_no_pack_is_too_long(lengths: list[int]) -> None:
    rows = [Example([i] * n, [i] * n) for i, n in enumerate(lengths)]
    made = packs(rows, 32)
    assert sorted(e.ids[0] for pack in made for e in pack) == list(range(len(rows)))
    filled = [sum(len(e.ids) for e in pack) for pack in made]
    assert max(filled) <= 32
    assert sum(1 for n in filled if n <= 16) <= 1  # two half-empty ones would have been one
    assert made == packs(rows, 32)


def test_a_model_whose_packed_rows_see_each_other_is_refused(model: nn.Module) -> None:
    require_apart(model, "llama")

    class Leaky(nn.Module):
        """Ignores positions, as a model with a cache or an attention of its own would."""

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return model(input_ids=input_ids, use_cache=False)

    with pytest.raises(Refused, match="packed rows see each other in a leaky model"):
        require_apart(Leaky(), "leaky")


def test_with_a_cache_the_rows_would_see_each_other(model: nn.Module) -> None:
    """Why a packed batch says use_cache=False."""
    rows = examples()
    batch = PackedCollator(0)([rows])
    leaking: Callable[[], torch.Tensor] = lambda: logits(model, batch | {"use_cache": True})  # noqa: E731
    assert not torch.equal(leaking(), logits(model, batch))
