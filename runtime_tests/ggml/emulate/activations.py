"""Activations as kernels see them: 8-bit integers in blocks, rounded by the rule of the instruction set.

A block of 32 has a scale ``d = amax / 127``, stored as float16; its integers come from the unrounded one:

========== ==================================== ===========================
rule       integers                             where
========== ==================================== ===========================
``HALF_AWAY`` ``x * (1 / d)``, halves away from 0 plain C (ggml-quants.c)
``HALF_EVEN`` ``x * (127 / amax)``, to even       AVX and later
``NEON``      ``x * (1 / d)``, to even            ARM
========== ==================================== ===========================

A block of 256 (Q8_K) has one rule everywhere: ``x * (-127 / max)`` to even, ``max`` the first largest, sign and all;
its scale is the reciprocal of that quotient, in float32.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats

BLOCK, SIXTEEN, SUPER = 32, 16, 256
MOST = np.float32(127)


class Rule(Enum):
    """How a block of 32 is rounded; see the table at the top."""

    HALF_AWAY = "halves away from zero"
    HALF_EVEN = "halves to even"
    NEON = "halves to even, by the reciprocal of the scale"
    SUPER = "blocks of 256"


@dataclass(frozen=True)
class Rounded:
    """Rounded activations.

    codes:    int8 [m, in].
    scale:    float32 [m, in / block].
    sums:     float32 [m, in / block]: scale, before its own rounding, times the sum of the block's integers, as
              float16 (what Q8_1 has beside Q8_0).
    sixteens: int32 [m, in / 16]: sums of integers (what Q8_K has).
    """

    codes: NDArray[np.int8]
    scale: Floats
    sums: Floats

    @property
    def sixteens(self) -> NDArray[np.int32]:
        found: NDArray[np.int32] = self.codes.reshape(len(self.codes), -1, SIXTEEN).sum(-1, dtype=np.int32)
        return found


def rounded(x: Floats, rule: Rule) -> Rounded:
    """float32 [m, in] -> its 8-bit form."""
    return _supers(x) if rule is Rule.SUPER else _blocks(x, rule)


def _blocks(x: Floats, rule: Rule) -> Rounded:
    blocks = x.reshape(len(x), -1, BLOCK)
    largest = np.abs(blocks).max(-1)
    scale = largest / MOST
    factor = _quotient(MOST, largest) if rule is Rule.HALF_EVEN else _quotient(np.float32(1), scale)
    value = blocks * factor[..., None]
    integers = np.rint(value)
    if rule is Rule.HALF_AWAY:
        whole = np.trunc(value)
        integers = whole + np.where(np.abs(value - whole) >= 0.5, np.sign(value), np.float32(0))
    sums = _half(scale * integers.sum(-1, dtype=np.float32))  # of integers: exact
    return Rounded(integers.astype(np.int8).reshape(x.shape), _half(scale), sums)


def _supers(x: Floats) -> Rounded:
    blocks = x.reshape(len(x), -1, SUPER)
    first = np.abs(blocks).argmax(-1)[..., None]
    largest = np.take_along_axis(blocks, first, -1)[..., 0]
    factor = _quotient(-MOST, largest)
    integers = np.rint(blocks * factor[..., None]).astype(np.int8).reshape(x.shape)
    scale = _quotient(np.float32(1), factor)
    return Rounded(integers, scale, np.zeros_like(scale))


def _quotient(number: np.float32, by: Floats) -> Floats:
    """``number / by``, and 0 for a block of zeros."""
    found: Floats = np.divide(number, by, out=np.zeros_like(by), where=by != 0)
    return found


def _half(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # to infinity, as in the kernel
        return x.astype(np.float16).astype(np.float32)
