"""`weights` against decode and cast: every code, scales and zeros of every kind, the three types of activations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import GRIDS, NAMES, halves, kernel, random_packed, same_bits, some_halves, there

from edgeqaf.grid import Grid, Zero
from edgeqaf.packed import Packed, pack
from edgeqaf.qtensor import decode

weights = kernel("weights")
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def reference(packed: Packed, rows: slice, dtype: torch.dtype) -> torch.Tensor:
    return decode(packed.rows(rows)).to(dtype)


def all_codes(grid: Grid) -> torch.Tensor:
    """int8 [n, block]: blocks that hold every code of the grid between them."""
    codes = np.arange(grid.lo, grid.hi + 1)
    return torch.from_numpy(np.resize(codes, -(-len(codes) // grid.block) * grid.block).astype(np.int8)).view(
        -1, grid.block
    )


def every_pair(grid: Grid, scales: torch.Tensor, zeros: torch.Tensor) -> Packed:
    """Every code with every scale and every zero, a row for each scale."""
    codes = all_codes(grid)
    across = len(zeros) * len(codes)
    scale = scales[:, None].expand(-1, across).contiguous()
    zero = zeros.repeat_interleave(len(codes)).expand(len(scales), -1).contiguous()
    packed = pack(codes.repeat(len(scales) * len(zeros), 1).view(len(scales), -1), grid)
    return Packed(grid, packed, scale, None if grid.zero is Zero.NONE else zero)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_every_code_with_scales_and_zeros_of_every_kind(grid: Grid, dtype: torch.dtype) -> None:
    zeros = {
        Zero.NONE: torch.zeros(1),
        Zero.CODE: torch.arange(grid.lo, grid.hi + 1, 16 if grid.bits == 8 else 1).float(),
        Zero.OFFSET: some_halves(),
    }[grid.zero]
    packed = every_pair(grid, some_halves(), zeros)
    rows = slice(0, packed.shape[0])
    with np.errstate(over="ignore"):  # float16 overflows to infinity, here as there
        assert same_bits(weights(there(packed), rows, dtype), reference(packed, rows, dtype))


def test_every_float16_scale() -> None:
    grid = next(grid for grid in GRIDS if grid.name == "q4_0")
    scale = halves().view(-1, 64)
    codes = all_codes(grid).repeat(scale.numel(), 1).view(len(scale), -1)
    packed = Packed(grid, pack(codes, grid), scale, None)
    rows = slice(0, len(scale))
    assert same_bits(weights(there(packed), rows, torch.bfloat16), reference(packed, rows, torch.bfloat16))


@given(st.sampled_from(GRIDS), st.integers(1, 40), st.integers(1, 9), st.data(), st.sampled_from(TYPES))
@settings(max_examples=20, deadline=None)
def test_any_shape_and_any_rows_of_it(
    grid: Grid, out: int, blocks: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    packed = random_packed(grid, out, blocks, data.draw(st.integers(0, 99)))
    first = data.draw(st.integers(0, out - 1))
    rows = slice(first, data.draw(st.integers(first + 1, out)))
    with np.errstate(over="ignore"):
        assert same_bits(weights(there(packed), rows, dtype), reference(packed, rows, dtype))
