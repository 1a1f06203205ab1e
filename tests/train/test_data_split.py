"""Duplicates, leaks and lengths: every row is trained on, held out, or left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqaf.data import Example
from edgeqaf.data.split import MOST_HELD_OUT, hold_out, remarks, split
from edgeqaf.errors import Refused
from edgeqaf.tokenizer import Tokenizer

STORYTELLER = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(STORYTELLER)


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"Say {n}.", "completion": f"{n}"} for n in numbers]


def divided(rows: Any, tokenizer: Tokenizer, held_out: Any = None, **changes: Any) -> Any:
    return split(rows, held_out, tokenizer, **{"max_length": 64, "share": 0.25, "seed": 0, **changes})


def keys(examples: list[Example]) -> list[str]:
    return sorted(json.dumps([e.ids, e.labels]) for e in examples)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_equal_examples_are_on_one_side_and_none_is_lost(numbers: list[int], share: float, seed: int) -> None:
    examples = [Example([n, n], [n, n]) for n in numbers]
    train, held = hold_out(examples, share, seed)
    assert keys(train + held) == keys(examples)
    assert not set(keys(train)) & set(keys(held))
    assert len(held) <= min(MOST_HELD_OUT, int(share * len(examples)))
    assert train
    assert (train, held) == hold_out(examples, share, seed)


def test_another_seed_holds_out_others() -> None:
    examples = [Example([n], [n]) for n in range(100)]
    assert len({tuple(keys(hold_out(examples, 0.2, seed)[1])) for seed in range(5)}) == 5
    assert len(hold_out(examples * 1, 0.2, 0)[1]) == 20
    assert len(hold_out([Example([n], [n]) for n in range(2000)], 0.5, 0)[1]) == MOST_HELD_OUT


def test_duplicates_are_counted_and_left_out_if_asked(tokenizer: Tokenizer) -> None:
    rows = pairs(1, 2, 1, 3, 2, 1)
    kept = divided(rows, tokenizer, share=0)
    assert (len(kept.train), kept.counts.duplicates, kept.counts.rows) == (6, 3, 6)
    dropped = divided(rows, tokenizer, share=0, drop_duplicates=True)
    assert (len(dropped.train), dropped.counts.duplicates) == (3, 3)
    assert keys(dropped.train) == keys(divided(pairs(1, 2, 3), tokenizer, share=0).train)


def test_held_out_rows_that_are_trained_on_are_left_out_of_the_loss(tokenizer: Tokenizer) -> None:
    found = divided(pairs(1, 2, 3), tokenizer, pairs(3, 4, 1, 5, 4))
    assert (len(found.train), len(found.held_out), found.counts.leaked) == (3, 3, 2)
    assert len(divided(pairs(1, 2), tokenizer, pairs(4, 5, 4), drop_duplicates=True).held_out) == 2
    with pytest.raises(Refused, match="all 2 held-out rows are also in the training data"):
        divided(pairs(1, 2, 3), tokenizer, pairs(3, 1))


def test_duplicates_of_documents_are_on_one_side(tokenizer: Tokenizer) -> None:
    """Cut into windows each document for itself, so that its copies have the same ones."""
    documents = [f"Day {n}. " + f"The {n} went {n} times. " * 20 for n in range(12)]
    rows = [{"text": text} for text in [*documents, *reversed(documents)]]
    found = divided(rows, tokenizer, max_length=32, share=0.3)
    full = [keys([e for e in side if len(e.ids) == 32]) for side in (found.train, found.held_out)]
    assert full[1]
    assert found.counts.duplicates == 12
    whole = {json.dumps([e.ids, e.labels]) for row in rows for e in divided([row], tokenizer, max_length=32).train}
    assert not set(full[0]) & set(full[1]) & whole


def test_rows_too_long_are_counted_in_both_files(tokenizer: Tokenizer) -> None:
    long, longer = ({"prompt": "word " * n, "completion": "x"} for n in (70, 90))
    found = divided([*pairs(1, 2), long], tokenizer, [*pairs(3), longer])
    assert (found.counts.too_long, len(found.train), len(found.held_out)) == (2, 2, 1)
    assert found.counts.longest == len(divided([longer], tokenizer, max_length=500).train[0].ids)
    with pytest.raises(Refused, match="all 1 rows are longer than 64 tokens"):
        divided(pairs(1), tokenizer, [longer])


def test_remarks_say_every_number(tokenizer: Tokenizer) -> None:
    rows = [*pairs(1, 1, 2), {"prompt": "word " * 70, "completion": "x"}]
    counts = divided(rows, tokenizer, pairs(2, 3)).counts
    duplicate, leak, long = remarks(counts, 64, dropped=False)
    assert duplicate.startswith("1 of 4 rows repeat an earlier one: trained on")
    assert leak == "1 held-out rows are also in the training data: left out of the held-out loss"
    assert long.startswith(f"1 rows are longer than 64 tokens (the longest {counts.longest}): left out")
    assert remarks(counts, 64, dropped=True)[0].endswith("left out")
    assert remarks(divided(pairs(1, 2), tokenizer).counts, 64, dropped=False) == []


def test_text_of_one_token_is_refused(tokenizer: Tokenizer) -> None:
    class Silent(Tokenizer):
        def encode(self, text: str, *, prompt: bool) -> list[int]:
            return []

    with pytest.raises(Refused, match="one token long"):
        divided([{"text": "a"}], Silent(STORYTELLER))
