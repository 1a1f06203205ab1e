"""Integers that are all there, and in the wrong place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.grid import Grid
from runtime_tests.selftest.registry import Parts, Random, matrix, pair


@matrix()
def halves_of_a_block_swapped(parts: Parts, grid: Grid, rng: Random) -> None:
    """The low and the high nibbles of GGUF's blocks."""
    block = _block(parts, grid, rng)
    block[:] = np.roll(block.copy(), grid.block // 2)


@matrix()
def neighbours_swapped_in_every_block(parts: Parts, grid: Grid, rng: Random) -> None:
    """Low nibble first, high nibble first."""
    codes = parts["codes"]
    codes[:] = codes.reshape(len(codes), -1, 2)[:, :, ::-1].reshape(codes.shape)


@matrix()
def two_blocks_of_a_row_swapped(parts: Parts, grid: Grid, rng: Random) -> bool:
    """With their scales."""
    blocks = parts["codes"].shape[1] // grid.unit
    if blocks < 2:
        return False
    row, (one, other) = int(rng.integers(len(parts["codes"]))), rng.choice(blocks, 2, replace=False)
    for values in parts.values():
        pieces = values[row].reshape(blocks, -1)
        pieces[[one, other]] = pieces[[other, one]]
    return True


@matrix("q_proj", "k_proj")
def rows_left_as_the_other_rotation_has_them(parts: Parts, grid: Grid, rng: Random) -> None:
    """Rows of q or k interleaved, or not, as a rotation of halves or of neighbours wants them."""
    order = np.arange(len(parts["codes"])).reshape(2, -1).T.reshape(-1)
    for values in parts.values():
        values[:] = values[order]


@matrix(square=True)
def codes_transposed(parts: Parts, grid: Grid, rng: Random) -> None:
    parts["codes"][:] = parts["codes"].T.copy()


@pair
def two_matrices_exchanged(parts: Parts, others: Parts) -> None:
    """As where two layers are."""
    for name, values in parts.items():
        values[:], others[name][:] = others[name].copy(), values.copy()


def _block(parts: Parts, grid: Grid, rng: Random) -> NDArray[Any]:
    codes = parts["codes"]
    row, block = int(rng.integers(len(codes))), int(rng.integers(codes.shape[1] // grid.block))
    found: NDArray[Any] = codes[row, block * grid.block : (block + 1) * grid.block]
    return found
