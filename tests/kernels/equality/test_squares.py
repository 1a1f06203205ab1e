"""`squares`: the reference's squares, summed in another order: within the bound that its docstring states."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DEVICE, FAMILY, kernel

from edgeqaf.noise import ROWS

if FAMILY == "cuda":
    from edgeqaf.kernels.cuda.squares import BAND, BLOCKS


def squares(grad: torch.Tensor, scale: torch.Tensor) -> list[torch.Tensor]:
    return [mean.cpu() for mean in kernel("squares")(grad.to(DEVICE), scale.to(DEVICE))]


def depths(out: int, blocks: int) -> tuple[float, float]:
    """In how many additions a term of a row's and of a column's sum takes part at most, as the kernel's text says.

    One more for each of: a sum that starts at zero, and the rounded quotient.
    """
    if FAMILY == "cpu":
        return blocks + 32 + 2, min(out, ROWS) + out / ROWS + 2
    run = BLOCKS * 32
    return run + blocks * 32 / run + 2, BAND + out / BAND + 2


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
    for found, wanted, depth in zip((rows, columns), exact(grad, scale), depths(out, blocks), strict=True):
        bound = (1 + 2.0**-24) ** math.ceil(depth) - 1
        assert (np.abs(found.double().numpy() - wanted) <= bound * wanted).all()


def test_a_gradient_of_nothing_gives_zero() -> None:
    rows, columns = squares(torch.zeros(3, 64), torch.ones(3, 2))
    assert rows.tolist() == [0.0] * 3
    assert columns.tolist() == [0.0] * 64


@pytest.mark.skipif(FAMILY == "cuda", reason="a GPU has no number of threads to set")
def test_threads_change_no_bit() -> None:
    grad, scale = torch.randn(1100, 640), torch.randn(1100, 20)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append([mean.numpy().tobytes() for mean in squares(grad, scale)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("row", [0, 127, 128, 199])
def test_a_single_entry_counts_once_and_where_it_stands(row: int) -> None:
    grad = torch.zeros(200, 320)
    grad[row, 300] = 3.0
    rows, columns = squares(grad, torch.full((200, 10), 2.0))
    assert rows.nonzero().flatten().tolist() == [row]
    assert columns.nonzero().flatten().tolist() == [300]
    assert float(rows[row]) == np.float32(36.0) / np.float32(320)
    assert float(columns[300]) == np.float32(36.0) / np.float32(200)
