"""Weights as digits: every integer in range, and every weight of every grid that the exact profile takes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqaf import plugins
from edgeqaf.errors import Refused
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor, decode
from exporters.onnx import exporter
from exporters.onnx.exact import digits

GRIDS = [name for name in plugins.names("grids") if exporter.refuses(plugins.find("grids", name)) is None]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_integer_is_its_digits(count: int):
    most = digits.capacity(count)
    values = np.arange(-most, most + 1, dtype=np.int32)[None]
    made = digits.split(values, count)
    assert made.dtype == np.int8
    assert made.min() >= -64
    assert made.max() <= 63
    assert np.array_equal(digits.join(made), values)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_as_many_digits_as_needed(count: int):
    most = digits.capacity(count)
    assert digits.count(most, "w") == count
    if count < digits.MOST_DIGITS:
        assert digits.count(most + 1, "w") == count + 1


def test_more_digits_are_refused_by_name():
    with pytest.raises(Refused, match=r"up_proj: its weights take 29 bits, the exact profile has 27"):
        digits.count(2**28, "up_proj")


@pytest.mark.parametrize("name", GRIDS)
@given(data=st.data())
def test_units_hold_every_weight(name: str, data: st.DataObject):
    """Of scales as real models have them: within 2**6 of each other in a row."""
    grid = plugins.find("grids", name)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape, blocks = (3, 2 * grid.unit), (3, 2 * grid.unit // grid.block)

    def halves() -> np.ndarray:
        return (rng.uniform(1, 64, blocks) * 2.0 ** data.draw(st.integers(-16, -6))).astype("<f2").astype(np.float32)

    codes = rng.integers(grid.lo, grid.hi, shape, np.int8, endpoint=True)
    points = rng.integers(grid.lo, grid.hi, blocks, np.int8, endpoint=True).astype(np.float32)
    scale = halves()
    zero = {Zero.NONE: None, Zero.CODE: points, Zero.OFFSET: -scale * 8}[grid.zero]
    w = decode(QTensor(grid, codes, scale, zero))
    count = digits.count((np.abs(w).max(-1) / digits.exact_units(w)).max(), "w")
    for more in range(count, digits.MOST_DIGITS + 1):
        units = digits.units(w, more)
        values = digits.integers(w, units)
        assert np.array_equal(digits.join(digits.split(values, more)) * units[:, None], w)
        assert (np.abs(values).max(-1)[w.any(-1)] > digits.capacity(more) // 2 - 1).all()  # the highest digit is full


@given(st.integers(0, 2**32 - 1), st.floats(-30, 30))
def test_floats_are_rounded_to_twenty_bits_of_their_row(seed: int, power: float):
    w = (np.random.default_rng(seed).standard_normal((4, 64)) * 2.0**power).astype(np.float32)
    units = digits.units(w, digits.FLOAT_DIGITS)
    values = digits.integers(w, units)
    assert digits.count(np.abs(values).max(), "w") <= digits.FLOAT_DIGITS
    assert (np.abs(values * units[:, None] - w) <= units[:, None] / 2).all()
    assert (units <= np.abs(w).max(-1) * 2.0**-18).all()


def test_rows_of_zeros_have_a_unit():
    w = np.zeros((2, 32), np.float32)
    assert (digits.exact_units(w) == 1).all()
    assert (digits.units(w, 3) == 1).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_exact_units_of_any_floats(values: list[float]):
    """Python's own integers as the judge: subnormal numbers and both ends of the range too."""
    (unit,) = digits.exact_units(np.array([values], np.float32))
    ratios = [value / Fraction(float(unit)) for value in map(Fraction, values)]
    assert all(ratio.denominator == 1 for ratio in ratios)
    assert not any(ratios) or any(ratio.numerator % 2 for ratio in ratios)


def test_a_row_of_next_to_nothing_has_a_unit_that_no_processor_takes_for_zero():
    (unit,) = digits.units(np.full((1, 4), 1e-44, np.float32), 3)
    assert unit == 2.0**digits.LEAST_UNIT
