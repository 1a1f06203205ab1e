"""`fold_product` against rounding the exact product and folding it, on every grid, ties included."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DEVICE, GRIDS, NAMES, kernel, random_packed, there

from edgeqaf.adapters.lowrank import fold_product
from edgeqaf.exact import A_BOUND, A_STEP, B_BOUND, B_STEP, MAX_RANK, exact_product
from edgeqaf.grid import Grid
from edgeqaf.packed import Packed, unpack

reference: Any = fold_product.__wrapped__  # type: ignore[attr-defined]


def factors(grid: Grid, out: int, blocks: int, rank: int, seed: int, spread: float) -> tuple[torch.Tensor, ...]:
    """b, a, factor, start: with entries beyond the bounds of the exact product, factors of both signs and zero."""
    generator = torch.Generator().manual_seed(seed)
    b, a = (
        torch.randn(out, rank, generator=generator) * spread,
        torch.randn(rank, blocks * grid.block, generator=generator),
    )
    factor = torch.randn(out, blocks, generator=generator, dtype=torch.float64)
    factor[0, 0] = 0
    a[0, 0], b[0, 0] = 1e9, -1e9
    return b, a, factor, torch.randint(-64, 64, (out, blocks * grid.block), generator=generator, dtype=torch.int8)


def folded(base: Packed, *others: torch.Tensor | None) -> torch.Tensor:
    made: torch.Tensor = kernel("fold_product")(there(base), *(x if x is None else x.to(DEVICE) for x in others))
    return made.cpu()


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_codes_are_the_references(grid: Grid) -> None:
    base = random_packed(grid, 37, 3, 0)
    for spread, rank in ((0.1, 1), (2.0, 4), (100.0, 3)):
        b, a, factor, start = factors(grid, 37, 3, rank, rank, spread)
        for given_start in (None, start):
            found = folded(base, b, a, factor, given_start)
            assert torch.equal(found, reference(base, b, a, factor, given_start))
        assert not torch.equal(found, base.codes)


def test_the_largest_rank() -> None:
    grid = next(grid for grid in GRIDS if grid.name == "q8_0")
    base = random_packed(grid, 32, 4, 0)
    b, a, factor, start = factors(grid, 32, 4, MAX_RANK, 0, 20.0)
    assert torch.equal(folded(base, b, a, factor, start), reference(base, b, a, factor, start))


@given(st.sampled_from(GRIDS), st.integers(1, 70), st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_any_shape(grid: Grid, out: int, blocks: int, rank: int, seed: int) -> None:
    base = random_packed(grid, out, blocks, seed)
    b, a, factor, start = factors(grid, out, blocks, rank, seed, 1.0)
    assert torch.equal(folded(base, b, a, factor, start), reference(base, b, a, factor, start))


def test_ties_and_their_neighbours() -> None:
    """Factors that bring one entry of a row onto a half-integer, or a last bit beside it: contraction would show."""
    grid = next(grid for grid in GRIDS if grid.name == "q8_0")
    generator = torch.Generator().manual_seed(1)
    out, rank = 60, 4
    a = torch.randint(-(2**20), 2**20, (rank, 64), generator=generator) * A_STEP
    b = torch.randint(-(2**22), 2**22, (out, rank), generator=generator) * B_STEP
    product, factor = exact_product(b, a), torch.ones(out, 2, dtype=torch.float64)
    for i in range(out):
        value = float(product[i, i])
        ratio = (math.floor(value / 500) + 0.5) / value
        factor[i] = (ratio, math.nextafter(ratio, 2.0), math.nextafter(ratio, 0.0))[i % 3]
    base = random_packed(grid, out, 2, 0)
    found = folded(base, b, a, factor, None)
    steps = (product.view(out, 2, 32) * factor[..., None] + 0.5).floor().view(out, 64)
    expected = (unpack(base.codes, grid).double() + steps).clamp(grid.lo, grid.hi)
    assert torch.equal(unpack(found, grid).double(), expected)
    assert torch.equal(found, reference(base, b, a, factor, None))


def test_the_largest_product_of_the_largest_rank_is_exact_in_both_integers_and_floats() -> None:
    largest = int(A_BOUND / A_STEP) * int(B_BOUND / B_STEP) * MAX_RANK
    assert largest < 2**63
    assert largest <= 2**53
    assert A_STEP * B_STEP == 2.0**-34  # a power of two: it commutes with rounding
    grid = next(grid for grid in GRIDS if grid.name == "q4_0")
    base = random_packed(grid, 2, 1, 0)
    b, a = torch.full((2, MAX_RANK), B_BOUND), torch.full((MAX_RANK, 32), A_BOUND)
    b[1] *= -1
    factor = torch.full((2, 1), 2.0**-17 * (1 + 2.0**-52), dtype=torch.float64)
    assert torch.equal(folded(base, b, a, factor, None), reference(base, b, a, factor, None))
