"""The quantizer: its result lies on the grid, searching never loses, and ggml's reference never does better."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from samples import ALL, GGML, GRIDS, bits

from edgeqaf import rounding
from edgeqaf.errors import Refused
from edgeqaf.grid import Zero
from edgeqaf.qtensor import check, decode
from edgeqaf.source import FloatModel

OF_32 = [grid for grid in ALL if grid.block == 32]
each_grid = pytest.mark.parametrize("grid", OF_32, ids=lambda grid: grid.name)


def weights(kind: str, out: int = 96, inputs: int = 256) -> np.ndarray:
    rng = np.random.default_rng(5)
    drawn = {
        "normal": lambda: rng.normal(0, 0.02, (out, inputs)),
        "heavy-tailed": lambda: rng.standard_t(2, (out, inputs)) * 0.02,
        "one-sided": lambda: np.abs(rng.normal(0, 0.02, (out, inputs))) + 0.1,
        "ties": lambda: rng.integers(-20, 21, (out, inputs)) / 8,
    }
    return drawn[kind]().astype(np.float32)


each_kind = pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "one-sided", "ties"])


def block_error(q, w: np.ndarray) -> np.ndarray:
    """Squared error per block in float64: [out, in / block]."""
    difference = decode(q).astype(np.float64) - w.astype(np.float64)
    return (difference.reshape(len(w), -1, q.grid.block) ** 2).sum(-1)


def same(a, b) -> bool:
    parts = ("codes", "scale") if a.zero is None else ("codes", "scale", "zero")
    return all(np.array_equal(bits(getattr(a, p)), bits(getattr(b, p))) for p in parts)


@each_grid
@each_kind
def test_the_search_never_loses_against_no_search(grid, kind):
    w = weights(kind)
    searched, plain = (check(rounding.quantize(w, grid, search=search), kind) for search in (True, False))
    slack = 1 + 2.0**-18  # the search sums 32 squares in float32, this test in float64
    assert (block_error(searched, w) <= block_error(plain, w) * slack).all()
    assert block_error(searched, w).sum() <= block_error(plain, w).sum()
    if kind == "normal" and grid.bits <= 4:
        assert block_error(searched, w).sum() < 0.97 * block_error(plain, w).sum()


@pytest.mark.parametrize("grid", [g for g in OF_32 if g.bits < 4], ids=lambda grid: grid.name)
def test_with_few_codes_the_search_wins_clearly_on_trained_weights(grid):
    base = FloatModel(Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        w = base[name][:64]
        searched, plain = (block_error(rounding.quantize(w, grid, search=search), w).sum() for search in (True, False))
        assert searched < 0.9 * plain


@pytest.mark.parametrize("grid", [g for g in OF_32 if g.bits < 4 and g.zero is not Zero.OFFSET], ids=lambda g: g.name)
@each_kind
def test_with_few_codes_the_search_comes_close_to_trying_everything(grid, kind):
    w = weights(kind, 4)
    least = np.full((4, w.shape[1] // grid.block), np.inf)
    zeros = [None] if grid.zero is Zero.NONE else [np.full_like(least, z, np.float32) for z in range(grid.hi + 1)]
    largest = np.abs(w.reshape(*least.shape, -1)).max(-1)
    for factor in np.linspace(-2, 2, 800):  # zero is not among them
        scale = (largest * factor / (grid.centre or grid.hi)).astype(np.float16).astype(np.float32)
        for zero in zeros:
            least = np.minimum(least, block_error(rounding._nearest(w.reshape(*least.shape, -1), grid, scale, zero), w))
    assert block_error(rounding.quantize(w, grid), w).sum() <= 1.02 * least.sum()


@pytest.mark.parametrize("grid", [GRIDS[name] for name in GGML], ids=GGML)
@each_kind
def test_ggmls_reference_quantizer_never_has_less_error(grid, kind):
    theirs = GGML[grid.name]
    w = weights(kind)
    their_error = gguf.quants.dequantize(gguf.quants.quantize(w, theirs), theirs).astype(np.float64) - w
    their_error = (their_error.reshape(len(w), -1, grid.block) ** 2).sum(-1)
    slack = 1 + 2.0**-18
    for search in (False, True):
        ours = block_error(rounding.quantize(w, grid, search=search), w)
        assert (ours <= their_error * slack).all()
        assert ours.sum() <= their_error.sum()


@each_grid
@each_kind
def test_codes_are_the_nearest_under_the_parameters_that_are_stored(grid, kind):
    w = weights(kind, 16)
    q = rounding.quantize(w, grid)
    error = np.abs(decode(q).astype(np.float64) - w)
    for step in (-1, 1):
        codes = q.codes.astype(np.int16) + step
        other = np.abs(decode(q.replace(codes=codes.astype(np.float32))).astype(np.float64) - w)
        legal = (codes >= grid.lo) & (codes <= grid.hi)
        assert (error[legal] <= other[legal] * (1 + 2.0**-12)).all()  # the float32 division may tip an exact tie


@each_grid
def test_what_lies_on_the_grid_already_is_found_again(grid):
    high = grid.hi - grid.centre
    low = -high if grid.zero is Zero.NONE and not grid.centre else grid.lo - grid.centre  # q8_0 counts from 127
    w = np.random.default_rng(6).integers(low, high, (32, 64), endpoint=True).astype(np.float32)
    w[:, :: grid.block], w[:, 1 :: grid.block] = low, high
    w *= np.float32(2.0**-7)
    assert np.array_equal(decode(rounding.quantize(w, grid)), w)


@each_grid
def test_blocks_of_zeros_decode_to_zeros(grid):
    w = weights("normal", 4, 128)
    w[1, 32:64] = 0
    w[2] = 0
    w[3, :32] = -0.0
    q = check(rounding.quantize(w, grid))
    assert not decode(q)[w == 0].any()


@each_grid
@pytest.mark.parametrize("value", [0.75, -0.75, 1.0, -3.0, 2.0**-14])
def test_a_constant_block_of_a_float16_value_is_stored_exactly(grid, value):
    # In q8_0 the end of the grid is 127 steps away, so that only 127 of something storable is exact.
    w = np.full((2, 64), np.float32(value) * (127 if grid.hi == 127 else 1), np.float32)
    q = check(rounding.quantize(w, grid))
    error = np.abs(decode(q).astype(np.float64) - w).max()
    if grid.name in ("q4_0", "q4_1", "q8_0"):
        assert error == 0
    else:  # a scale of value / 15 or value / 255 is rounded to float16, which may be subnormal there
        assert error <= max(np.abs(w).max() * 2.0**-11, (grid.hi - grid.lo) * 2.0**-25)


@each_grid
def test_an_outlier_is_kept_and_its_neighbours_stay_within_a_step(grid):
    w = weights("normal", 4, 64)
    w[:, 7] = [5.0, -5.0, 50.0, -50.0]
    q = check(rounding.quantize(w, grid))
    step = np.abs(np.repeat(q.scale, grid.block, 1))
    assert (np.abs(decode(q) - w)[:, 7] <= step[:, 7]).all()
    near = slice(0, grid.block)  # blocks without an outlier may be clipped by more, where codes are few
    assert (np.abs(decode(q) - w) <= np.maximum(step, 0.2 * np.abs(w)))[:, near].all()


@each_grid
@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-38, 1e-12, 2.0**-24, 1e-6])
def test_weights_too_small_for_float16_become_zeros_or_stay_small(grid, size):
    w = weights("normal", 4, 64) / np.float32(0.1)
    w = (w.astype(np.float64) * size).astype(np.float32)
    q = check(rounding.quantize(w, grid))
    assert np.isfinite(decode(q)).all()
    assert (np.abs(decode(q)) <= 2 * max(np.abs(w).max(), 2.0**-24)).all()
    if (grid.name, size) != ("q5_1", 1e-6):  # there the scale rounds to zero and the minimum, which is stored, does not
        assert block_error(q, w).sum() <= (w.astype(np.float64) ** 2).sum() * (1 + 2.0**-18)


@each_grid
@pytest.mark.parametrize("size", [1e8, 3e38])
def test_a_block_beyond_float16_is_refused_with_its_size(grid, size):
    w = weights("normal", 4, 64)
    w[1, 33], w[1, 34] = size, -size
    with pytest.raises(Refused, match=r"weights as large as \d(\.\d+)?e\+\d\d"):
        rounding.quantize(w, grid)


@pytest.mark.parametrize("grid", [g for g in ALL if g.zero is Zero.OFFSET], ids=lambda grid: grid.name)
def test_a_minimum_beyond_float16_is_refused_with_its_size(grid):
    w = weights("normal", 2, 64) + np.float32(1e5)
    with pytest.raises(Refused, match=r"as large as 1e\+05"):
        rounding.quantize(w, grid)


@each_grid
def test_rows_are_quantized_one_by_one_however_they_are_chunked(grid, monkeypatch):
    w = weights("heavy-tailed", rounding.ROWS + 3, 64)
    whole = rounding.quantize(w, grid)
    monkeypatch.setattr(rounding, "ROWS", 7)
    assert same(rounding.quantize(w, grid), whole)
    for row in (0, 6, 7, len(w) - 1):
        alone = rounding.quantize(w[row : row + 1], grid)
        assert np.array_equal(alone.codes[0], whole.codes[row])
        assert np.array_equal(bits(alone.scale[0]), bits(whole.scale[row]))


@each_grid
def test_the_argument_is_left_as_it_was_and_its_layout_does_not_matter(grid):
    w = weights("normal", 8, 64)
    before = w.tobytes()
    q = rounding.quantize(w, grid)
    assert w.tobytes() == before
    assert same(rounding.quantize(np.asfortranarray(w), grid), q)
    assert same(rounding.quantize(np.repeat(w, 2, 0)[::2], grid), q)
