"""What a stored number means: every code under every scale, against ggml's own decoder, torch and exact arithmetic."""

import gguf
import numpy as np
import pytest
from samples import ALL, GGML, GRIDS, all_codes, all_halves, bits, to_torch

from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, decode

SCALES_AT_ONCE = 8192
each_grid = pytest.mark.parametrize("grid", ALL, ids=lambda grid: grid.name)
each_registered_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def tensors(grid: Grid):
    """Every code under every scale, a scale a row; each scale has one random zero, and one scale has them all."""
    halves, codes = all_halves(), all_codes(grid)
    zeros = {
        Zero.NONE: None,
        Zero.CODE: np.arange(grid.lo, grid.hi + 1).astype(np.float32),
        Zero.OFFSET: halves,
    }[grid.zero]
    rng = np.random.default_rng(0)
    for start in range(0, len(halves), SCALES_AT_ONCE):
        scale = halves[start : start + SCALES_AT_ONCE]
        yield _tensor(grid, codes, scale, None if zeros is None else rng.choice(zeros, len(scale)))
    if zeros is not None:
        for start in range(0, len(zeros), SCALES_AT_ONCE):
            zero = zeros[start : start + SCALES_AT_ONCE]
            yield _tensor(grid, codes, np.full(len(zero), np.float32(np.float16(-0.0123))), zero)


def _tensor(grid: Grid, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> QTensor:
    def per_block(row: np.ndarray) -> np.ndarray:
        return np.repeat(row[:, None], len(codes) // grid.block, 1)

    return QTensor(grid, np.tile(codes, (len(scale), 1)), per_block(scale), None if zero is None else per_block(zero))


def exactly(q: QTensor) -> np.ndarray:
    """The table in `edgeqaf.grid`, in float64, which holds every such sum and product without rounding."""
    codes, scale, zero = (None if part is None else part.astype(np.float64) for part in (q.codes, q.scale, q.zero))
    scale = np.repeat(scale, q.grid.block, 1)
    if zero is None:
        return (codes - q.grid.centre) * scale
    zero = np.repeat(zero, q.grid.block, 1)
    return (codes - zero) * scale if q.grid.zero is Zero.CODE else codes * scale + zero


def ggml_blocks(q: QTensor) -> np.ndarray:
    """uint8 [blocks, bytes] as in ggml-common.h: d, then m where there is one, then codes j and j + 16 in one byte."""
    codes = q.codes.reshape(-1, q.grid.block).view(np.uint8)
    if q.grid.bits == 4:
        codes = codes[:, :16] | codes[:, 16:] << 4
    parameters = [p.reshape(-1, 1).astype("<f2").view(np.uint8) for p in (q.scale, q.zero) if p is not None]
    return np.concatenate([*parameters, codes], 1)


@each_grid
def test_every_code_under_every_scale_is_the_exact_value_rounded_once(grid):
    # Equal to the once-rounded exact value means: no order of operations and no FMA can change it.
    for q in tensors(grid):
        assert np.array_equal(bits(decode(q)), bits(exactly(q).astype(np.float32)))


@pytest.mark.parametrize("grid", [g for g in ALL if g.bits <= 4], ids=lambda grid: grid.name)
def test_every_product_of_four_bits_or_fewer_is_exact_in_float32(grid):
    factors = np.arange(grid.lo - grid.hi, grid.hi - grid.lo + 1) if grid.zero is Zero.CODE else all_codes(grid)
    factors = factors.astype(np.float32)[:, None] - np.float32(grid.centre)
    product = factors * all_halves()
    assert product.dtype == np.float32
    assert np.array_equal(product.astype(np.float64), factors.astype(np.float64) * all_halves().astype(np.float64))


@each_grid
def test_numpy_and_torch_decode_to_the_same_bits(grid):
    for q in tensors(grid):
        on_torch = to_torch(q)
        ours = bits(decode(q))
        assert np.array_equal(ours, bits(decode(on_torch)))
        assert np.array_equal(ours, bits(decode(on_torch.replace(codes=on_torch.codes.float()))))


@pytest.mark.parametrize("grid", [GRIDS[name] for name in GGML], ids=GGML)
def test_ggml_decodes_the_packed_blocks_to_the_same_bits(grid):
    for q in tensors(grid):
        theirs = gguf.quants.dequantize(ggml_blocks(q), GGML[grid.name])
        assert np.array_equal(bits(decode(q)), bits(theirs.reshape(q.shape)))


@each_grid
def test_decode_gives_float32_in_the_shape_of_the_codes(grid):
    q = next(tensors(grid))
    assert decode(q).dtype == np.float32
    assert decode(q).shape == q.shape == q.codes.shape
    assert q.size == q.codes.size


@each_registered_grid
def test_a_grid_is_called_as_its_file_and_says_what_it_stores(grid):
    assert GRIDS[grid.name] is grid
    assert grid.lo <= grid.centre <= grid.hi
    assert grid.hi - grid.lo < 2**grid.bits
    assert grid.source
    if grid.levels is None:
        zero = {Zero.NONE: 0, Zero.CODE: grid.bits, Zero.OFFSET: 16}[grid.zero]
        assert grid.bits_per_weight == (grid.block * grid.bits + 16 + zero) / grid.block
    assert grid.fits(3 * grid.unit)
    assert not grid.fits(3 * grid.unit + grid.block // 2)
