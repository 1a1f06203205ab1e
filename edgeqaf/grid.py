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
class Grid:
    """One storage format's set of representable weights.

    name:   the registry key, equal to the file's name under ``edgeqaf/grids``.
    bits:   width of a code in the packed formats.
    lo, hi: smallest and largest code, inclusive.
    block:  consecutive inputs that share a scale.
    centre: the constant code that means zero on a ``Zero.NONE`` grid.
    zero:   what is stored beside the scale.
    source: where the format is defined.
    """

    name: str
    bits: int
    lo: int
    hi: int
    block: int
    zero: Zero
    source: str
    centre: int = 0

    @property
    def slots(self) -> frozenset[Slot]:
        """The slots an adapter may write."""
        return frozenset({Slot.CODES, Slot.SCALE} | (set() if self.zero is Zero.NONE else {Slot.ZERO}))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scale and zero included (16 bits each; an integer zero, ``bits``)."""
        zero_bits = {Zero.NONE: 0, Zero.CODE: self.bits, Zero.OFFSET: 16}[self.zero]
        return self.bits + (16 + zero_bits) / self.block

    def fits(self, inputs: int) -> bool:
        """Whether rows of ``inputs`` weights divide into whole blocks."""
        return inputs % self.block == 0
