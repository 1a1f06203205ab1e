"""`move` against an update of `codes` on the CPU: given the same factors, every code and remainder is equal."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DEVICE, GRIDS, NAMES, kernel, random_packed

from edgeqaf.adapters.codes import CLIP, Codes, move
from edgeqaf.grid import Grid
from edgeqaf.noise import ROWS
from edgeqaf.residual import PARTS

reference: Any = move.__wrapped__  # type: ignore[attr-defined]


def pair(grid: Grid, out: int, blocks: int, seed: int) -> tuple[Codes, Codes, torch.Tensor]:
    """Two equal parts with remainders of every value, their noise at a later update; and their scales."""
    base = random_packed(grid, out, blocks, seed)
    generator = torch.Generator().manual_seed(seed)
    parts = Codes(base, seed * 2654435761 % 2**31, 0), Codes(base, seed * 2654435761 % 2**31, 0)
    left = torch.randint(-64, 64, base.shape, generator=generator, dtype=torch.int8)
    for part in parts:
        part.remainder.copy_(left)
        part.updates += seed % 7
    return *parts, base.scale


def update(grid: Grid, out: int, blocks: int, seed: int, lr: float, dtype: torch.dtype, spread: float = 1.0) -> int:
    """Hold the kernel against the reference; how many remainders moved."""
    one, other, scale = pair(grid, out, blocks, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    grad = (torch.randn(out, blocks * grid.block, generator=generator) * spread).to(dtype)
    step = lr * PARTS
    row = (1 / scale.abs().mean(1).clamp_min(2.0**-24)) * step
    column = torch.rand(blocks * grid.block, generator=generator) * 2
    before = one.remainder.clone()
    one.to(DEVICE)
    kernel("move")(*(x.to(DEVICE) for x in (grad, scale, row, column)), CLIP * step, one)
    one.to("cpu")
    reference(grad.float(), scale, row, column, CLIP * step, other)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.remainder, other.remainder)
    return int((one.remainder != before).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_codes_and_remainders_are_the_references(grid: Grid, dtype: torch.dtype) -> None:
    for seed, lr in enumerate((0.001, 0.5, 8.0)):
        assert update(grid, 21, 3, seed, lr, dtype)


@given(st.sampled_from(GRIDS), st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6), st.floats(1e-4, 8.0))
@settings(max_examples=12, deadline=None)
def test_any_shape(grid: Grid, out: int, blocks: int, seed: int, lr: float) -> None:
    update(grid, out, blocks, seed, lr, torch.float32)


def test_rows_beyond_a_band_of_the_noise() -> None:
    grid = next(grid for grid in GRIDS if grid.name == "q4_0")
    assert update(grid, 2 * ROWS + 9, 1, 3, 0.03, torch.float32)


@pytest.mark.parametrize("spread", [1e-42, 1e-38, 1e30])
def test_gradients_that_are_subnormal_or_huge(spread: float) -> None:
    grid = next(grid for grid in GRIDS if grid.name == "q4_1")
    with np.errstate(over="ignore"):
        update(grid, 5, 2, 5, 8.0, torch.float32, spread)


def test_a_gradient_that_is_not_a_number_moves_nothing() -> None:
    grid = next(grid for grid in GRIDS if grid.name == "q8_0")
    one, other, scale = pair(grid, 4, 2, 0)
    wrong = torch.full((4, 64), float("nan"), device=DEVICE)
    one.to(DEVICE)
    kernel("move")(wrong, scale.to(DEVICE), torch.ones(4, device=DEVICE), torch.ones(64, device=DEVICE), 5.0, one)
    one.to("cpu")
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.remainder, other.remainder)
