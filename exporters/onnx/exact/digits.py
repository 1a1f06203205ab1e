"""A matrix as integers, and these as digits of eight bits, so that integer hardware multiplies them exactly.

Row n of W [out, in] is ``unit[n] * V[n]`` with integers V and a power of two as the unit, and V is
``sum of 128**j * digits[j]`` with digits in [-64, 63]. Seven bits each, not eight: instructions of older x86
processors add pairs of products in 16 bits, and two products of an unsigned byte with 7 bits always fit.

A weight on a grid is a float16 scale times a small integer, or the sum of two such: few bits, so as many digits are
taken as hold it exactly. A float matrix is rounded to three digits, 20 bits relative to the largest of its row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused

BASE = 128
FLOAT_DIGITS = 3
MOST_DIGITS = 4  # more would not leave room for the sum of products in 53 bits
LEAST_UNIT = -100
NOTHING = 1000  # beyond every exponent


def capacity(count: int) -> int:
    """The largest integer of ``count`` digits."""
    return sum(63 * BASE**j for j in range(count))


def exact_units(w: Floats) -> NDArray[np.float64]:
    """Of each row of w [out, in]: the largest power of two of which all its weights are multiples; 1 for zeros."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    exponent = (bits >> 23).astype(np.int32) & 0xFF
    mantissa = (bits & 0x7FFFFF) | np.where(exponent == 0, np.uint32(0), np.uint32(2**23))
    last = (mantissa & -mantissa).astype(np.float32).view(np.uint32) >> 23  # of a power of two: its exponent, plus 127
    least = np.where(mantissa == 0, NOTHING, np.maximum(exponent, 1) - 150 + last.astype(np.int32) - 127).min(-1)
    return _power(np.where(least == NOTHING, 0, least))


def units(w: Floats, count: int) -> NDArray[np.float64]:
    """Of each row of w [out, in]: the smallest power of two in which it fits ``count`` digits; 1 for zeros.

    The highest digit then has as many bits as can be. Weights that are integers of so many digits in some power of
    two are so in this one, which is not larger. Not below 2**`LEAST_UNIT`, so that no processor takes it for zero.
    """
    largest, most = np.abs(w).max(-1).astype(np.float64), capacity(count)
    return _power(np.maximum(np.ceil(np.log2(np.where(largest == 0, most, largest) / most)), LEAST_UNIT))


def _power(exponents: NDArray[Any]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.exp2(exponents.astype(np.float64))
    return result


def integers(w: Floats, units: NDArray[np.float64]) -> NDArray[np.int32]:
    """w [out, in] in units of its rows, rounded to the nearest integer; none beyond 2**31."""
    result: NDArray[np.int32] = np.rint(w * (1 / units).astype(np.float32)[:, None]).astype(np.int32)
    return result


def count(largest: float, name: str) -> int:
    """How many digits hold integers up to ``largest``; raises Refused for more than `MOST_DIGITS`."""
    for digits in range(1, MOST_DIGITS + 1):
        if largest <= capacity(digits):
            return digits
    most = capacity(MOST_DIGITS).bit_length()
    raise Refused(
        f"{name}: its weights take {int(largest).bit_length()} bits, the exact profile has {most}",
        "the scales of a row differ too much; export the everyday profile",
    )


def split(values: NDArray[np.int32], digits: int) -> NDArray[np.int8]:
    """values [out, in] -> [digits, out, in], the lowest digit first."""
    made = np.empty((digits, *values.shape), np.int8)
    for j in range(digits):
        made[j] = ((values + BASE // 2) & (BASE - 1)) - BASE // 2
        values = (values - made[j]) >> 7
    return made


def join(made: NDArray[np.int8]) -> NDArray[np.int32]:
    """The inverse of `split`."""
    return sum((made[j].astype(np.int32) << 7 * j for j in range(len(made))), np.zeros(made.shape[1:], np.int32))
