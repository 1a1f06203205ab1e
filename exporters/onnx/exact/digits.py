"""A matrix as integers, and these as digits of eight bits, so that integer hardware multiplies them exactly.

Row n of W [out, in] is ``unit[n] * V[n]`` with integers V and a power of two as the unit, and V is
``sum of 128**j * digits[j]`` with digits in [-64, 63]. Seven bits each, not eight: instructions of older x86
processors add pairs of products in 16 bits, and two products of an unsigned byte with 7 bits always fit.

A weight on a grid is a float16 scale times a small integer, or the sum of two such: few bits, so units are chosen
that hold it exactly. A float matrix is rounded to three digits, 20 bits relative to the largest of its row.
"""

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused

BASE = 128
FLOAT_DIGITS = 3
MOST_DIGITS = 4  # more would not leave room for the sum of products in 53 bits


def capacity(count: int) -> int:
    """The largest integer of ``count`` digits."""
    return sum(63 * BASE**j for j in range(count))


def exact_units(w: Floats) -> NDArray[np.float64]:
    """Of each row of w [out, in]: the largest power of two of which all its weights are multiples; 1 for zeros."""
    mantissa, exponent = np.frexp(w.astype(np.float64))
    whole = np.abs(mantissa * 2.0**24).astype(np.int64)  # float32 has 24 bits
    lowest = np.where(whole == 0, 2**30, whole & -whole)
    least = np.where(whole == 0, 1000, exponent - 24 + np.log2(lowest).astype(np.int64)).min(-1)
    result: NDArray[np.float64] = np.exp2(np.where(least == 1000, 0, least).astype(np.float64))
    return result


def rounded_units(w: Floats) -> NDArray[np.float64]:
    """Of each row of w [out, in]: the smallest power of two in which it fits `FLOAT_DIGITS` digits; 1 for zeros."""
    largest = np.abs(w).max(-1).astype(np.float64)
    least = np.exp2(np.ceil(np.log2(np.where(largest == 0, 1, largest) / capacity(FLOAT_DIGITS))))
    result: NDArray[np.float64] = np.where(largest == 0, 1.0, least)
    return result


def integers(w: Floats, units: NDArray[np.float64]) -> NDArray[np.int64]:
    """w [out, in] in units of its rows, rounded to the nearest integer."""
    result: NDArray[np.int64] = np.rint(w / units[:, None]).astype(np.int64)
    return result


def count(values: NDArray[np.int64], name: str) -> int:
    """How many digits ``values`` need; raises Refused for more than `MOST_DIGITS`."""
    largest = int(np.abs(values).max(initial=0))
    for digits in range(1, MOST_DIGITS + 1):
        if largest <= capacity(digits):
            return digits
    most = capacity(MOST_DIGITS).bit_length()
    raise Refused(
        f"{name}: its weights take {largest.bit_length()} bits, the exact profile has {most}",
        "the scales of a row differ too much; export the everyday profile",
    )


def split(values: NDArray[np.int64], digits: int) -> NDArray[np.int8]:
    """values [out, in] -> [digits, out, in], the lowest digit first."""
    made = np.empty((digits, *values.shape), np.int8)
    for j in range(digits):
        made[j] = ((values + BASE // 2) & (BASE - 1)) - BASE // 2
        values = (values - made[j]) >> 7
    return made


def join(made: NDArray[np.int8]) -> NDArray[np.int64]:
    """The inverse of `split`."""
    return sum((made[j].astype(np.int64) << 7 * j for j in range(len(made))), np.zeros(made.shape[1:], np.int64))
