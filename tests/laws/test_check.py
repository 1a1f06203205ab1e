"""`check` lets nothing pass that does not lie on its grid, and says which value it was."""

import re

import numpy as np
import pytest
from samples import ALL, EVERY, ZERO_4, ZERO_8, random_tensor

from edgeqaf import parts
from edgeqaf.errors import GridError
from edgeqaf.grid import Zero
from edgeqaf.parts import join, split
from edgeqaf.qtensor import check

each_grid = pytest.mark.parametrize("grid", EVERY, ids=lambda grid: grid.name)
each_of_one_level = pytest.mark.parametrize("grid", ALL, ids=lambda grid: grid.name)
with_zero = pytest.mark.parametrize("grid", [g for g in ALL if g.zero is not Zero.NONE], ids=lambda grid: grid.name)
NAME = "model.layers.3.mlp.up_proj.weight"
NOT_HALVES = {
    "nan": np.nan, "inf": np.inf, "minus inf": -np.inf, "one bit too fine": 1 + 2.0**-11, "too large": 65536.0,
    "rounds to infinity": 65520.0, "finer than the smallest subnormal": 2.0**-25, "float32 subnormal": 1e-45,
}  # fmt: skip


def put(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[2, 1] = value
    return changed


def refuse(q, message: str) -> GridError:
    with pytest.raises(GridError, match=f"^{re.escape(NAME)}.*{message}") as refused:
        check(q, NAME)
    return refused.value


@each_grid
def test_parts_pass_where_the_tensor_of_them_does(grid):
    whole = split(random_tensor(grid, 0))
    halves = np.array([0x0000, 0x8000, 0x0001, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFC01], np.uint16)
    for part, array in whole.items():
        for value in halves.view(np.float16) if array.dtype == np.float16 else range(-128, 128):
            arrays = whole | {part: put(array, value)}
            with np.errstate(invalid="ignore"):
                q = join(grid, arrays)
                try:
                    check(q, NAME)
                except GridError as error:
                    assert not parts.on_grid(grid, arrays)
                    with pytest.raises(GridError, match=f"^{re.escape(str(error))}$"):
                        parts.check(grid, arrays, NAME)
                else:
                    assert parts.check(grid, arrays, NAME) is arrays


@each_grid
def test_whatever_lies_on_the_grid_passes_and_is_returned(grid):
    for seed in range(20):
        q = random_tensor(grid, seed)
        assert check(q) is q


@each_of_one_level
@pytest.mark.parametrize("part", ["scale", "zero"])
@pytest.mark.parametrize("value", NOT_HALVES.values(), ids=NOT_HALVES)
def test_what_float16_cannot_hold_is_refused_with_its_index_and_value(grid, part, value):
    q = random_tensor(grid)
    if part == "zero" and grid.zero is Zero.NONE:
        q = q.replace(zero=put(q.scale, value))
        refuse(q, f"{grid.name} stores zero=none, the tensor has a zero")
        return
    shown = re.escape(repr(np.float32(value)))
    refuse(q.replace(**{part: put(getattr(q, part), value)}), rf"\.{part}\[2, 1\] = {shown} is not")


@each_of_one_level
def test_the_first_wrong_value_is_the_one_that_is_named(grid):
    q = random_tensor(grid)
    scale = put(q.scale, np.inf)
    scale[3, 0] = np.nan
    refuse(q.replace(scale=scale), r"\.scale\[2, 1\] = .*inf")


@pytest.mark.parametrize("grid", [g for g in EVERY if g.bits < 8], ids=lambda grid: grid.name)
def test_a_code_outside_the_grid_is_refused_with_the_span(grid):
    q = random_tensor(grid)
    for code in (grid.lo - 1, grid.hi + 1, -128, 127):
        codes = put(q.codes, code)
        span = rf"codes span \[{codes.min()}, {codes.max()}\], outside {grid.name}'s \[{grid.lo}, {grid.hi}\]"
        refuse(q.replace(codes=codes), span)


@each_grid
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_codes_of_another_type_are_refused(grid, dtype):
    q = random_tensor(grid)
    refuse(q.replace(codes=q.codes.astype(dtype)), f"codes are {np.dtype(dtype)}, not int8")


@each_grid
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int32])
def test_parameters_of_another_type_are_refused(grid, dtype):
    q = random_tensor(grid)
    for part in ("scale",) if q.zero is None else ("scale", "zero"):
        wrong = np.ones_like(q.scale).astype(dtype)
        refuse(q.replace(**{part: wrong}), rf"\.{part}: dtype {np.dtype(dtype)}, expected float32")


@each_grid
def test_a_parameter_of_another_shape_is_refused_with_both_shapes(grid):
    q = random_tensor(grid)
    for part in ("scale",) if q.zero is None else ("scale", "zero"):
        array = getattr(q, part)
        for wrong in (array[:-1], array[:, :-1], array.T.copy(), array.ravel(), array[..., None], array[:1]):
            message = rf"\.{part}: shape {re.escape(str(wrong.shape))}, expected \(4, {3 * grid.unit // grid.block}\)"
            refuse(q.replace(**{part: wrong}), message)


@with_zero
def test_a_missing_zero_is_refused(grid):
    refuse(random_tensor(grid).replace(zero=None), f"{grid.name} stores zero={grid.zero.value}, the tensor has no zero")


@each_grid
def test_rows_that_do_not_divide_into_blocks_are_refused_with_both_numbers(grid):
    q = random_tensor(grid)
    error = refuse(
        q.replace(codes=q.codes[:, :-1]), rf"{q.shape[1] - 1} columns .* {grid.name}'s block \({grid.unit}\)"
    )
    assert "block" in error.remedy


@each_grid
@pytest.mark.parametrize("shape", [(0, 32), (4, 0), (128,), (2, 2, 32), ()], ids=str)
def test_what_is_no_matrix_of_weights_is_refused_with_its_shape(grid, shape):
    parameters = np.ones((*shape[:-1], shape[-1] // 32) if shape else (), np.float32)
    q = random_tensor(grid).replace(codes=np.full(shape, grid.lo, np.int8), scale=parameters)
    q = q.replace(zero=None if q.zero is None else parameters)
    refuse(q, re.escape(f"{shape}"))


@pytest.mark.parametrize("grid", [ZERO_4, ZERO_8], ids=lambda grid: grid.name)
def test_an_integer_zero_must_be_an_integer_that_is_a_code(grid):
    q = random_tensor(grid)
    for value in (grid.lo - 1, grid.hi + 1, 0.5):
        refuse(q.replace(zero=put(q.zero, value)), rf"\.zero\[2, 1\] = {re.escape(repr(np.float32(value)))} is not")
