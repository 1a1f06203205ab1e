"""What a stored number means: the grid.

A quantized matrix is held as small integers (``codes``) plus, for every ``block`` of consecutive
inputs, a ``scale`` and perhaps a ``zero``. A `Grid` names the set of values that such a triple can
represent and how it is read back. Three kinds of zero cover the formats that edge runtimes load:

=========== ============================== ===========================================
zero        a weight is                    stored by
=========== ============================== ===========================================
``NONE``    ``(code - centre) * scale``    GGUF Q4_0, Q8_0; ONNX int4 / int8
``CODE``    ``(code - zero) * scale``      ONNX uint4 with an integer zero point, GPTQ
``OFFSET``  ``code * scale + zero``        GGUF Q4_1 (zero is the block's f16 minimum)
=========== ============================== ===========================================

Scales and offsets are always values that float16 can hold, whatever type a file stores them in.
That one rule keeps every 4-bit product exact in float32 (4 + 11 significant bits), so the decoded
weight does not depend on the order of operations, on FMA, or on the machine.

GGUF's K-quants keep them in two levels: a super-block of 256 inputs has one float16 ``d`` (and ``dmin``),
each block in it a small integer, and a block's scale is their product. It has at most 11 + 8 significant
bits, so it is exact in float32 too, and so is its product with any code of such a grid. The levels are
frozen: an adapter writes the codes of such a grid and nothing else.
"""

from dataclasses import dataclass
from enum import Enum


class Zero(Enum):
    """What a grid keeps beside the scale; see the table at the top of this module."""

    NONE = "none"
    CODE = "code"
    OFFSET = "offset"


class Slot(Enum):
    """A part of a quantized tensor that an adapter may write."""

    CODES = "codes"
    SCALE = "scale"
    ZERO = "zero"


@dataclass(frozen=True)
class Levels:
    """How a two-level grid stores what other grids store as scale and zero.

    block: consecutive inputs of a super-block, which share ``d`` and ``dmin``.
    scale: smallest and largest integer scale of a block; its scale is ``d * integer``.
    zero:  the same of a block's minimum, whose zero is ``-(dmin * integer)``; None without one.
    """

    block: int
    scale: tuple[int, int]
    zero: tuple[int, int] | None = None

    def bits(self, block: int) -> float:
        """Stored bits per weight beside the codes."""
        kept = [span for span in (self.scale, self.zero) if span is not None]
        return len(kept) * 16 / self.block + sum((hi - lo).bit_length() for lo, hi in kept) / block


@dataclass(frozen=True)
class Grid:
    """One storage format's set of representable weights.

    name:   the registry key, equal to the file's name under ``edgeqaf/grids``.
    bits:   width of a code in the packed formats.
    lo, hi: smallest and largest code, inclusive.
    block:  consecutive inputs that share a scale.
    centre: the constant code that means zero on a ``Zero.NONE`` grid.
    zero:   what is kept beside the scale.
    source: where the format is defined.
    levels: how scale and zero are stored, where that is in two levels; None: each by itself.
    """

    name: str
    bits: int
    lo: int
    hi: int
    block: int
    zero: Zero
    source: str
    centre: int = 0
    levels: Levels | None = None

    @property
    def slots(self) -> frozenset[Slot]:
        """The slots an adapter may write."""
        if self.levels is not None:
            return frozenset({Slot.CODES})
        return frozenset({Slot.CODES, Slot.SCALE} | (set() if self.zero is Zero.NONE else {Slot.ZERO}))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scale and zero included (16 bits each; an integer zero, ``bits``)."""
        if self.levels is not None:
            return self.bits + self.levels.bits(self.block)
        zero_bits = {Zero.NONE: 0, Zero.CODE: self.bits, Zero.OFFSET: 16}[self.zero]
        return self.bits + (16 + zero_bits) / self.block

    @property
    def unit(self) -> int:
        """What a row's length must be a multiple of: the block, or the super-block."""
        return self.block if self.levels is None else self.levels.block

    def fits(self, inputs: int) -> bool:
        """Whether rows of ``inputs`` weights divide into whole blocks and super-blocks."""
        return inputs % self.unit == 0
