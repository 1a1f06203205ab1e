"""`fold` clips, rounds to what is stored, refuses foreign slots, and touches nothing else; on numpy as on torch."""

import struct

import numpy as np
import pytest
import torch
from samples import ALL, EVERY, ZERO_4, ZERO_8, all_codes, bits, random_tensor, to_torch

from edgeqaf.errors import GridError
from edgeqaf.grid import Slot, Zero
from edgeqaf.qtensor import Delta, QTensor, check, fold

each_grid = pytest.mark.parametrize("grid", EVERY, ids=lambda grid: grid.name)
each_of_one_level = pytest.mark.parametrize("grid", ALL, ids=lambda grid: grid.name)
with_zero = pytest.mark.parametrize("grid", [g for g in ALL if g.zero is not Zero.NONE], ids=lambda grid: grid.name)
OFFSETS = [g for g in ALL if g.zero is Zero.OFFSET]
with_offset = pytest.mark.parametrize("grid", OFFSETS, ids=lambda grid: grid.name)
WIDEST = 2**15 - 128  # the largest delta that int16 can add to any int8 code


def same(a: QTensor, b: QTensor) -> bool:
    parts = [(a.codes, b.codes), (a.scale, b.scale), *([(a.zero, b.zero)] if a.zero is not None else [])]
    return all(np.array_equal(bits(x), bits(y)) for x, y in parts)


def as_half(x: float) -> float:
    """IEEE 754 binary16 by the standard library; beyond the largest, infinity."""
    try:
        return struct.unpack("<e", struct.pack("<e", x))[0]
    except OverflowError:
        return float(np.copysign(np.inf, x))


@each_grid
def test_a_delta_of_nothing_or_of_zeros_is_the_identity(grid):
    q = random_tensor(grid)
    assert fold(q, Delta()) is q
    assert same(fold(q, Delta(codes=np.zeros(q.shape, np.int16))), q)
    if Slot.ZERO in grid.slots:
        q = q.replace(zero=q.zero + np.float32(0))  # IEEE: -0.0 + 0.0 is 0.0, the one bit a zero delta may change
        assert same(fold(q, Delta(zero=np.zeros_like(q.zero))), q)


@each_grid
def test_every_code_plus_every_delta_is_clipped_to_the_grid(grid):
    codes = all_codes(grid)
    q = QTensor(grid, codes[None, :], np.ones((1, len(codes) // grid.block), np.float32))
    deltas = np.concatenate([np.arange(-600, 601), np.arange(-WIDEST, WIDEST + 1, 97), [WIDEST, 255 - 2**15]])
    for delta in deltas.tolist():
        folded = fold(q, Delta(codes=np.full(q.shape, delta, np.int16))).codes
        expected = [min(max(int(c) + delta, grid.lo), grid.hi) for c in (grid.lo, 0, 1, grid.hi)]
        assert folded[0, [c - grid.lo for c in (grid.lo, 0, 1, grid.hi)]].tolist() == expected, delta
        assert np.array_equal(folded[0], np.clip(codes.astype(np.int64) + delta, grid.lo, grid.hi)), delta


@each_grid
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=str)
def test_numpy_and_torch_fold_to_the_same_bits(grid, dtype):
    rng = np.random.default_rng(1)
    q = random_tensor(grid, out=64)
    codes = rng.integers(-300, 301, q.shape).astype(np.int16)
    zero = (
        None
        if Slot.ZERO not in grid.slots
        else (rng.normal(0, 20, q.zero.shape) * 2.0 ** rng.integers(-20, 4, q.zero.shape))
    )
    zero = None if zero is None else zero.astype(np.float32)
    ours = fold(q, Delta(codes, zero))
    on_torch = to_torch(q)
    theirs = fold(
        on_torch.replace(codes=on_torch.codes.to(dtype)),
        Delta(torch.from_numpy(codes).to(dtype), None if zero is None else torch.from_numpy(zero)),
    )
    assert same(ours, theirs.replace(codes=theirs.codes.to(torch.int16)))


@each_grid
def test_a_slot_that_the_grid_lacks_is_refused_by_name(grid):
    q = random_tensor(grid)
    assert {Slot.CODES} | (set() if grid.levels else {Slot.SCALE}) <= grid.slots
    assert Delta(codes=q.codes, zero=q.scale).slots == {Slot.CODES, Slot.ZERO}
    assert Delta(scale=q.scale).slots == {Slot.SCALE}
    if Slot.ZERO in grid.slots:
        fold(q, Delta(zero=np.zeros_like(q.zero)))
        return
    with pytest.raises(GridError, match=f"grid {grid.name} has no zero slot") as refused:
        fold(q, Delta(zero=np.zeros_like(q.scale)))
    assert refused.value.remedy.endswith(f"{grid.name} has codes" + ("" if grid.levels else ", scale"))


@each_grid
def test_fold_returns_a_new_tensor_and_leaves_its_arguments(grid):
    q = random_tensor(grid)
    delta = Delta(np.full(q.shape, 3, np.int16), np.full_like(q.zero, 1) if Slot.ZERO in grid.slots else None)
    parts = [p for p in (q.codes, q.scale, q.zero, delta.codes, delta.zero) if p is not None]
    before = [p.tobytes() for p in parts]
    folded = fold(q, delta)
    assert [p.tobytes() for p in parts] == before
    assert not np.shares_memory(folded.codes, q.codes)
    assert folded.scale is q.scale
    assert folded.grid is grid


@each_grid
def test_two_folds_are_one_where_nothing_is_clipped_and_only_there(grid):
    q = random_tensor(grid)
    middle = (grid.lo + grid.hi) // 2
    q = q.replace(codes=np.full(q.shape, middle, np.int8))
    rng = np.random.default_rng(2)
    reach = (grid.hi - grid.lo) // 4
    a, b = (rng.integers(-reach, reach + 1, q.shape).astype(np.int16) for _ in range(2))
    assert same(fold(fold(q, Delta(a)), Delta(b)), fold(q, Delta(a + b)))
    far = np.full(q.shape, grid.hi - grid.lo, np.int16)
    there_and_back = fold(fold(q, Delta(far)), Delta(-far))
    assert (there_and_back.codes == grid.lo).all()
    assert not same(there_and_back, q)


@each_of_one_level
def test_a_scale_is_rounded_to_the_nearest_float16_and_nothing_else_moves(grid):
    rng = np.random.default_rng(3)
    q = random_tensor(grid, out=500, blocks=2)
    steps = np.spacing(np.abs(q.scale).astype(np.float16)).astype(np.float32)
    delta = steps * rng.choice([0.25, 0.5, 0.75, 1.5, -0.5, -1.5, 2.5], q.scale.shape).astype(np.float32)  # ties too
    folded = fold(q, Delta(scale=delta))
    expected = [as_half(float(s)) for s in (q.scale + delta).ravel()]
    assert np.array_equal(bits(folded.scale.ravel()), bits(np.array(expected, np.float32)))
    assert folded.codes is q.codes
    assert folded.zero is q.zero
    on_torch = fold(to_torch(q), Delta(scale=torch.from_numpy(delta)))
    assert np.array_equal(bits(folded.scale), bits(on_torch.scale))


@with_offset
def test_an_offset_is_rounded_to_the_nearest_float16(grid):
    rng = np.random.default_rng(3)
    q = random_tensor(grid, out=2000, blocks=1)
    steps = np.spacing(np.abs(q.zero).astype(np.float16)).astype(np.float32)
    delta = steps * rng.choice([0.25, 0.5, 0.75, 1.5, -0.5, -1.5, 2.5], q.zero.shape).astype(np.float32)  # ties too
    with np.errstate(over="ignore"):
        folded = fold(q, Delta(zero=delta))
    expected = [as_half(float(z)) for z in (q.zero + delta).ravel()]
    assert np.array_equal(bits(folded.zero.ravel()), bits(np.array(expected, np.float32)))


@with_offset
def test_an_offset_beyond_float16_becomes_infinite_and_is_caught_by_check(grid):
    q = random_tensor(grid, out=2, blocks=2)
    q = q.replace(zero=np.zeros_like(q.zero))
    delta = np.array([[65519.0, 1.0], [65520.0, 1.0]], np.float32)  # the last that rounds down to 65504; the first not
    folded = fold(q, Delta(zero=delta))  # under filterwarnings=error: no warning for what `check` will name
    assert folded.zero.tolist() == [[65504.0, 1.0], [np.inf, 1.0]]
    on_torch = fold(to_torch(q), Delta(zero=torch.from_numpy(delta)))
    assert np.array_equal(bits(folded.zero), bits(on_torch.zero))
    with pytest.raises(GridError, match=r"blk\.7\.zero\[1, 0\] = .*inf.* is not a finite float16"):
        check(folded, "blk.7")


@with_zero
def test_a_folded_zero_lies_on_the_grid(grid):
    q = random_tensor(grid, out=50)
    if grid.zero is Zero.OFFSET:
        q = q.replace(zero=np.clip(q.zero, -1000, 1000))
    delta = np.random.default_rng(4).normal(0, 40, q.zero.shape).astype(np.float32)
    folded = fold(q, Delta(zero=delta))
    assert folded.zero.dtype == np.float32
    assert check(folded) is folded


@pytest.mark.parametrize("grid", [ZERO_4, ZERO_8], ids=lambda grid: grid.name)
def test_an_integer_zero_is_rounded_half_to_even_and_clipped(grid):
    zeros = np.arange(grid.lo, grid.hi + 1).astype(np.float32)
    for step in (-300.0, -1.5, -0.5, 0.0, 0.49, 0.5, 1.0, 2.5, 300.0):
        q = QTensor(grid, np.zeros((len(zeros), 32), np.int8), np.ones((len(zeros), 1), np.float32), zeros[:, None])
        folded = fold(q, Delta(zero=np.full_like(q.zero, step)))
        expected = [min(max(round(float(z) + step), grid.lo), grid.hi) for z in zeros]  # Python rounds half to even
        assert folded.zero.ravel().tolist() == expected
