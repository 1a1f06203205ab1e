"""The compiled search for scales, held to the bits of its definition in numpy; and what it leaves to it."""

import numpy as np
import pytest
import torch

from edgeqaf import plugins, rounding
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.kernels import rounding as compiled
from edgeqaf.kernels import scalars
from edgeqaf.qtensor import to_half

GRIDS = [g for n in plugins.names("grids") if (g := plugins.find("grids", n)).levels is None]
INPUTS = 512


def awkward() -> np.ndarray:
    """Rows of random weights of every size, of ties, of zeros of both signs, of constants and of single weights."""
    rng = np.random.default_rng(9)
    sizes = np.exp2(rng.integers(-40, 12, (8, 1)))
    lone = np.zeros((4, INPUTS))
    lone[np.arange(4)[:, None], rng.integers(0, INPUTS, (4, 6))] = rng.normal(size=(4, 6))
    halves = rng.integers(0, 0x7400, (4, INPUTS)).astype(np.uint16).view(np.float16) * np.float32(0.25)
    rows = [
        rng.standard_t(2, (24, INPUTS)) * 0.02, rng.normal(size=(8, INPUTS)) * sizes,
        np.abs(rng.normal(size=(4, INPUTS))),
        rng.integers(-20, 21, (8, INPUTS)) / 8, rng.integers(-3, 4, (4, INPUTS)) * 2.0**-24, lone, halves,
        np.full((1, INPUTS), -0.75), np.zeros((1, INPUTS)), np.full((1, INPUTS), -0.0),
        np.where(rng.random((2, INPUTS)) < 0.5, 0.0, -0.0), np.full((1, INPUTS), 1e-45), np.full((1, INPUTS), -3e-40),
        rng.choice([0.0, 1e-45, -1e-45], (2, INPUTS)), rng.choice([-0.5, 0.5], (2, INPUTS)),
    ]  # fmt: skip
    return np.concatenate(rows).astype(np.float32)


def parts(q) -> list[np.ndarray]:
    found = [q.codes.view(np.uint8), q.scale.view(np.uint32)]
    return found if q.zero is None else [*found, q.zero.view(np.uint32)]


@pytest.mark.parametrize("search", [True, False], ids=["searched", "end of grid"])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_every_grid_has_the_bits_of_the_definition(grid: Grid, search: bool) -> None:
    w = awkward()
    found, wanted = compiled.quantize(w, grid, search=search), rounding.definition(w, grid, search=search)
    assert found is not None
    assert all(np.array_equal(a, b) for a, b in zip(parts(found), parts(wanted), strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int) -> None:
    grid, w, before = plugins.find("grids", "q4_0"), awkward().repeat(4, 0), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = compiled.quantize(w, grid, search=True)
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(parts(found), parts(rounding.definition(w, grid)), strict=True))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("value", [1e9, -3e38])
def test_a_scale_beyond_float16_is_refused_in_words(grid: Grid, value: float) -> None:
    w = awkward()
    w[30, 300:] = value
    assert compiled.quantize(w, grid, search=False) is None
    with pytest.raises(Refused, match="needs a scale beyond float16"):
        rounding.quantize(w, grid)


def test_halves_are_rounded_as_numpy_rounds_them() -> None:
    """Around every float16 value and every middle of two; and beyond the largest, where ours is infinite by size."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    near = np.concatenate([halves, middles, [65520, 65519.99, 1e9]]).astype(np.float32)
    x = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1e10))])
    x = np.concatenate([x, -x])
    found = np.array([scalars.half(v) for v in x], np.float32)
    finite = np.abs(to_half(x)) < np.inf
    assert np.array_equal(found[finite].view(np.uint32), to_half(x)[finite].view(np.uint32))
    assert np.isinf(found[~finite]).all()


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.centre], ids=lambda grid: grid.name)
def test_one_addition_rounds_as_two_do(grid: Grid) -> None:
    """floor(x + centre + 1/2) never falls as x rises, so it is the same function if each code begins at the same x."""
    centre, half, one = np.float32(grid.centre), np.float32(0.5), np.float32(grid.centre + 0.5)
    for code in range(grid.lo + 1, grid.hi + 1):
        low, high = np.float32(-300), np.float32(300)  # bisection, to neighbours
        while (middle := (low + high) / np.float32(2)) not in (low, high):
            low, high = (low, middle) if np.floor(middle + centre + half) >= code else (middle, high)
        if np.nextafter(low, high) != high:  # around zero, halving stays above the smallest numbers
            pytest.fail(f"{low!r} and {high!r} are no neighbours")
        assert np.floor(high + one) >= code > np.floor(low + one)


def test_any_cut_of_rows_and_any_strides_are_alike() -> None:
    grid, w = plugins.find("grids", "q2_0"), awkward()
    whole, every = rounding.quantize(w, grid), rounding.quantize(w[::2], grid)
    assert np.array_equal(whole.codes[::2], every.codes)
    turned = np.asfortranarray(w)
    assert np.array_equal(rounding.quantize(turned, grid).codes, whole.codes)


def test_a_block_that_is_too_wide_is_left_to_the_definition() -> None:
    grid = Grid("wide", 4, 0, 15, 512, plugins.find("grids", "q4_0").zero, "none", centre=8)
    assert np.array_equal(rounding.quantize(awkward(), grid).codes, rounding.definition(awkward(), grid).codes)
