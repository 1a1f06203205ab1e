"""Grids of two levels: what they decode to, how they are stored, and that no wrong second level passes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import TWO_LEVEL, all_codes, all_halves, bits, random_tensor, to_torch

from edgeqaf.digest import tensor_digest
from edgeqaf.errors import GridError
from edgeqaf.grid import Slot
from edgeqaf.parts import dtypes, join, split
from edgeqaf.qtensor import QTensor, Supers, check, decode

each_grid = pytest.mark.parametrize("grid", TWO_LEVEL, ids=lambda grid: grid.name)
# From ggml-common.h: sizeof(block) * 8 / 256.
BITS_PER_WEIGHT = {"q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5, "q5_k": 5.5, "q6_k": 6.5625}


def tensors(grid):
    """Every code under every integer scale (and minimum) under float16s that cover every exponent."""
    halves, codes = all_halves()[:: len(all_halves()) // 997], all_codes(grid)
    rng = np.random.default_rng(0)
    first, last = grid.levels.scale
    scales = np.resize(np.arange(first, last + 1), -(-(last - first + 1) // 16) * 16).astype(np.int8)
    count = len(scales) * grid.block // grid.levels.block
    for start in range(0, len(halves), 128):
        d = np.repeat(halves[start : start + 128, None], count, 1)
        levels = [d, np.tile(scales, (len(d), 1))]
        if grid.levels.zero is not None:
            levels += [rng.choice(halves, d.shape), rng.integers(*grid.levels.zero, levels[1].shape, endpoint=True)]
            levels[3] = levels[3].astype(np.int8)
        every = np.resize(codes, len(scales) * grid.block)
        for shift in range(0, len(codes), grid.block):  # a block holds some of the codes; take each once
            supers = Supers(*levels)
            yield QTensor(grid, np.tile(np.roll(every, shift), (len(d), 1)), supers.scale, supers.zero, supers)


def exactly(q: QTensor) -> np.ndarray:
    """ggml's formula in float64, which holds it without rounding."""

    def spread(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64).repeat(q.shape[1] // values.shape[1], 1)

    supers, codes = q.supers, q.codes.astype(np.float64) - q.grid.centre
    weights = spread(supers.d) * spread(supers.scales) * codes
    return weights if supers.dmin is None else weights - spread(supers.dmin) * spread(supers.mins)


@each_grid
def test_every_code_under_every_scale_is_the_exact_value_rounded_once(grid):
    for q in tensors(grid):
        check(q)
        assert np.array_equal(decode(q), exactly(q).astype(np.float32))
        assert np.array_equal(bits(decode(q)), bits(decode(to_torch(q))))


@each_grid
def test_a_grid_of_two_levels_says_what_it_stores_and_lets_only_codes_be_written(grid):
    assert grid.bits_per_weight == BITS_PER_WEIGHT[grid.name]
    assert grid.slots == {Slot.CODES}
    assert list(dtypes(grid)) == ["codes", "d", "scales"] + (["dmin", "mins"] if grid.levels.zero else [])


@each_grid
def test_parts_are_joined_to_the_same_tensor(grid):
    q = random_tensor(grid)
    again = check(join(grid, split(q)))
    assert {p: a.tobytes() for p, a in split(again).items()} == {p: a.tobytes() for p, a in split(q).items()}
    assert np.array_equal(bits(decode(again)), bits(decode(q)))


@given(st.sampled_from(TWO_LEVEL), st.integers(0, 2**32), st.data())
def test_any_other_stored_bit_is_another_digest(grid, seed, data):
    q = random_tensor(grid, seed, out=2, blocks=1)
    parts = split(q)
    part = data.draw(st.sampled_from(list(parts)))
    raw = bytearray(parts[part].tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with np.errstate(invalid="ignore"):
        changed = join(grid, parts | {part: np.frombuffer(raw, parts[part].dtype).reshape(parts[part].shape)})
    assert tensor_digest("w", changed) != tensor_digest("w", q)


def refuse(q: QTensor, message: str) -> None:
    with pytest.raises(GridError, match=message):
        check(q, "w")


def put(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[2, 1] = value
    return changed


@each_grid
@pytest.mark.parametrize("value", [np.nan, np.inf, 1 + 2.0**-11], ids=str)
def test_a_second_level_that_float16_cannot_hold_is_refused(grid, value):
    q = random_tensor(grid)
    for part in ["d"] + (["dmin"] if grid.levels.zero else []):
        supers = replace(q.supers, **{part: put(getattr(q.supers, part), value)})
        refuse(q.replace(supers=supers), rf"w\.{part}\[2, 1\] = .* is not a finite float16 value")


@each_grid
def test_an_integer_scale_beyond_the_grid_is_refused(grid):
    q = random_tensor(grid)
    spans = {"scales": grid.levels.scale} | ({"mins": grid.levels.zero} if grid.levels.zero else {})
    for part, (low, high) in spans.items():
        for value in {max(low - 1, -128), min(high + 1, 127)} - {low, high}:
            supers = replace(q.supers, **{part: put(getattr(q.supers, part), value)})
            refuse(q.replace(supers=supers), rf"w\.{part}\[2, 1\] = .*{value}.* is not an integer in \[{low}, {high}\]")


@each_grid
def test_scale_and_zero_must_be_the_products_of_the_second_level(grid):
    q = random_tensor(grid)
    refuse(q.replace(scale=-q.scale), r"w\.scale is not the product")
    if q.zero is not None:
        refuse(q.replace(zero=-q.zero), r"w\.zero is not the product")


@each_grid
def test_a_missing_or_misshapen_second_level_is_refused(grid):
    q = random_tensor(grid)
    refuse(q.replace(supers=None), "w: .* the tensor has no second level")
    refuse(q.replace(supers=replace(q.supers, d=q.supers.d[:, :-1])), r"w\.d: shape \(4, 2\), expected \(4, 3\)")
    wide = replace(q.supers, scales=q.supers.scales.astype(np.int16))
    refuse(q.replace(supers=wide), r"w\.scales: dtype int16, expected int8")
    if grid.levels.zero:
        refuse(q.replace(supers=replace(q.supers, mins=None)), r"w\.mins: shape None")
