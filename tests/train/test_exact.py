"""The exact product against Python's integers, and its screened rounding against rounding it whole."""

import math

import numpy as np
import pytest
import torch

from edgeqaf.errors import UsageError
from edgeqaf.exact import (
    A_BOUND,
    A_STEP,
    B_BOUND,
    B_STEP,
    exact_product,
    require_exact,
    rounded_product,
    snap_a,
    snap_b,
)


def factors(rank: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 96, generator=generator) * 9, torch.randn(40, rank, generator=generator) * 19 * spread
    return b, a


@pytest.mark.parametrize("rank", [1, 16, 64])
def test_product_is_exact_against_integers(rank: int) -> None:
    b, a = factors(rank, 0)
    product = exact_product(b, a)
    whole_a = [[round(float(x) / A_STEP) for x in row] for row in snap_a(a)]
    whole_b = [[round(float(x) / B_STEP) for x in row] for row in snap_b(b)]
    assert max(abs(x) for row in whole_a for x in row) <= A_BOUND / A_STEP
    assert max(abs(x) for row in whole_b for x in row) <= B_BOUND / B_STEP
    for i in range(0, 40, 7):
        for j in range(0, 96, 11):
            exact = sum(x * whole_a[k][j] for k, x in enumerate(whole_b[i]))
            assert int(product[i, j].item() / (A_STEP * B_STEP)) == exact
    assert A_BOUND / A_STEP * B_BOUND / B_STEP * 64 <= 2**53


@pytest.mark.parametrize("rank", [1, 16, 64])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(5))
def test_screened_rounding_is_the_rounding_of_the_exact_product(rank: int, spread: float, seed: int) -> None:
    b, a = factors(rank, seed, spread)
    factor = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor[3, 1] = 0
    expected = (exact_product(b, a).view(40, 3, 32) * factor[..., None] + 0.5).floor().float().view(40, 96)
    assert rounded_product(b, a, factor).numpy().tobytes() == expected.numpy().tobytes()


def test_ties_and_their_neighbours_round_by_the_exact_value() -> None:
    """Products laid on the thresholds themselves, and one unit of B beside them: float32 alone cannot tell."""
    rank = 16
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-(2**20), 2**20, (rank, 64), generator=generator) * A_STEP
    b = torch.randint(-(2**22), 2**22, (50, rank), generator=generator) * B_STEP
    product = exact_product(b, a)
    factor = torch.ones(50, 2, dtype=torch.float64)
    for i in range(50):  # the factor that brings one entry of the row onto a half-integer, or next to it
        nearest = math.floor(float(product[i, i % 64])) + 0.5
        ratio = nearest / float(product[i, i % 64])
        factor[i] = (ratio, math.nextafter(ratio, 2.0), math.nextafter(ratio, 0.0))[i % 3]
    expected = (product.view(50, 2, 32) * factor[..., None] + 0.5).floor().float().view(50, 64)
    assert rounded_product(b, a, factor).numpy().tobytes() == expected.numpy().tobytes()
    screened = ((b.float() @ a.float()).view(50, 2, 32) * factor.float()[..., None] + 0.5).floor().view(50, 64)
    assert not np.array_equal(screened.numpy(), expected.numpy())


def test_threads_and_the_order_of_the_rank_change_nothing() -> None:
    b, a = factors(16, 3)
    factor = torch.full((40, 3), 0.37, dtype=torch.float64)
    before, threads = rounded_product(b, a, factor), torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            order = torch.randperm(16, generator=torch.Generator().manual_seed(count))
            assert torch.equal(rounded_product(b[:, order], a[order], factor), before)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rank", [0, 65])
def test_rank_beyond_exactness_is_refused(rank: int) -> None:
    with pytest.raises(UsageError, match=rf"lowrank: rank {rank} is outside 1\.\.64"):
        require_exact("lowrank", rank)


@pytest.mark.parametrize("seed", range(4))
def test_a_start_shifts_the_threshold_exactly(seed: int) -> None:
    b, a = factors(16, seed, 0.05)
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    start = torch.randint(-64, 64, (40, 96), generator=generator) / 128
    value = exact_product(b, a).view(40, 3, 32) * factor[..., None]
    expected = (value.view(40, 96) + (start.double() + 0.5)).floor().float()
    assert rounded_product(b, a, factor, start).numpy().tobytes() == expected.numpy().tobytes()
    assert not torch.equal(expected, (value.view(40, 96) + 0.5).floor().float())
