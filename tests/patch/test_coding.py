"""Differences: exact both ways, near their entropy, and refused when they are damaged, never a crash."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeqaf.errors import Refused
from edgeqaf.patch.coding import add, encode

quickly = settings(max_examples=200, deadline=None, derandomize=True)
bytes_of = arrays(np.uint8, st.shared(st.integers(0, 700), key="n"))


def there_and_back(before: np.ndarray, after: np.ndarray) -> bytes:
    coded = encode(before, after)
    if not coded:
        assert np.array_equal(before, after)
        return coded
    values = before.copy()
    add(coded, values)
    assert np.array_equal(values, after)
    add(coded, values, times=-1)
    assert np.array_equal(values, before)
    return coded


@quickly
@given(bytes_of, bytes_of)
def test_any_bytes_become_any_others_and_come_back(before, after):
    there_and_back(before, after)


@quickly
@given(st.integers(1, 200_000), st.sets(st.integers(0, 199_999), max_size=6), st.integers(1, 255))
def test_so_it_is_where_few_differ_however_far_apart(size, places, step):
    before = np.zeros(size, np.uint8)
    after = before.copy()
    after[[place for place in places if place < size]] = step
    there_and_back(before, after)


@pytest.mark.parametrize("share", [0.0002, 0.001, 0.005, 0.02, 0.08, 0.24, 0.49, 0.51, 0.8, 1.0])
@pytest.mark.parametrize("steps", [[1, -1], [1, -1, 2, -2, 3], [1]], ids=str)
def test_size_is_within_15_per_cent_of_the_entropy(share, steps):
    rng = np.random.default_rng(0)
    before = rng.integers(0, 16, 2**20).astype(np.uint8)
    weights = 2.0 ** -np.arange(len(steps))
    move = rng.choice(steps, before.size, p=weights / weights.sum()).astype(np.int8).view(np.uint8)
    after = np.where(rng.random(before.size) < share, before + move, before).astype(np.uint8)
    size = len(there_and_back(before, after))
    rates = np.bincount(after - before, minlength=256) / before.size
    rates = rates[rates > 0]
    entropy = -(rates * np.log2(rates)).sum() * before.size / 8
    # A byte holds eight moves of one value at most, for which a Huffman code still spends a bit.
    least = before.size / 64 if len(steps) == 1 else 0
    assert size <= 1.15 * entropy + least + 200
    assert size >= entropy


@pytest.mark.parametrize("share", [0.001, 0.1, 0.9])
def test_damage_is_refused_or_changes_bytes_and_nothing_else(share):
    rng = np.random.default_rng(1)
    before = rng.integers(0, 16, 600).astype(np.uint8)
    after = np.where(rng.random(600) < share, before + 1, before).astype(np.uint8)
    after[7] += 1
    coded = encode(before, after)
    refused = 0
    for damaged in [coded[:n] for n in range(len(coded))] + [
        coded[:i] + bytes([coded[i] ^ 1 << bit]) + coded[i + 1 :] for i in range(len(coded)) for bit in range(8)
    ]:
        values = before.copy()
        try:
            add(damaged, values)
        except Refused:
            refused += 1
        assert values.size == before.size
    assert refused > len(coded)


def test_differences_of_more_bytes_than_there_are_is_refused():
    coded = encode(np.zeros(72, np.uint8), np.ones(72, np.uint8))
    sparse = encode(np.zeros(64, np.uint8), np.eye(1, 64, 63, np.uint8)[0])
    for each in (coded, sparse):
        with pytest.raises(Refused, match="do not fit"):
            add(each, np.zeros(63, np.uint8))
