"""`squares`: the reference's squares, summed in another order: within the bound that its docstring states."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DEVICE

from edgeqaf.kernels.squares import BAND, BLOCKS
from edgeqaf.kernels.squares import squares as kernel


def squares(grad: torch.Tensor, scale: torch.Tensor) -> list[torch.Tensor]:
    return [mean.cpu() for mean in kernel(grad.to(DEVICE), scale.to(DEVICE))]


def exact(grad: torch.Tensor, scale: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both means of the squares that float32 gives, by exact sums."""
    g = grad.float().view(*scale.shape, 32) * scale[..., None]
    square = (g * g).view(grad.shape).double().tolist()
    rows = [math.fsum(row) / len(row) for row in square]
    columns = [math.fsum(column) / len(column) for column in zip(*square, strict=True)]
    return np.array(rows), np.array(columns)


@given(st.integers(1, 150), st.integers(1, 20), st.integers(0, 99), st.sampled_from(["float32", "bfloat16", "float16"]))
@settings(max_examples=12, deadline=None)
def test_means_are_within_the_stated_bound(out: int, blocks: int, seed: int, dtype: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    grad = (torch.randn(out, blocks * 32, generator=generator) * 1e-3).to(getattr(torch, dtype))
    scale = torch.randn(out, blocks, generator=generator).half().float() * 2.0**-6
    rows, columns = squares(grad, scale)
    run = BLOCKS * 32
    # One addition more for each of: a sum that starts at zero, and the rounded quotient.
    additions = run + blocks * 32 / run + 2, BAND + out / BAND + 2
    for found, wanted, depth in zip((rows, columns), exact(grad, scale), additions, strict=True):
        bound = (1 + 2.0**-24) ** math.ceil(depth) - 1
        assert (np.abs(found.double().numpy() - wanted) <= bound * wanted).all()


def test_a_gradient_of_nothing_gives_zero() -> None:
    rows, columns = squares(torch.zeros(3, 64), torch.ones(3, 2))
    assert rows.tolist() == [0.0] * 3
    assert columns.tolist() == [0.0] * 64


@pytest.mark.parametrize("row", [0, 127, 128, 199])
def test_a_single_entry_counts_once_and_where_it_stands(row: int) -> None:
    grad = torch.zeros(200, 320)
    grad[row, 300] = 3.0
    rows, columns = squares(grad, torch.full((200, 10), 2.0))
    assert rows.nonzero().flatten().tolist() == [row]
    assert columns.nonzero().flatten().tolist() == [300]
    assert float(rows[row]) == np.float32(36.0) / np.float32(320)
    assert float(columns[300]) == np.float32(36.0) / np.float32(200)
