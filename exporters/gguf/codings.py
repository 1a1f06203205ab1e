"""How ggml's blocks keep small integers in bytes: codes in planes of bits, or as trits; block scales in a few ways.

A coding writes whole arrays into the fields of a structured array and reads them back; both directions are
exact, and every pattern of bytes is a value (but for trits: of 256 bytes 243 are written).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Blocks = NDArray[Any]  # structured, [...]


class Codes(Protocol):
    """Part of a block's codes: reading gives that part, and the parts are added."""

    def write(self, blocks: Blocks, codes: Bytes) -> None:
        """Store ``codes`` [..., weights] in ``blocks`` [...]."""

    def read(self, blocks: Blocks) -> Bytes:
        """The codes [..., weights], as far as this coding holds them."""


@dataclass(frozen=True)
class Plane:
    """Bits of every code from ``low`` on, ``bits`` of them, ``8 / bits`` lanes to a byte of ``field``.

    A byte's lanes are codes ``width`` apart: byte j of group g holds in lane l a part of code
    ``(g * lanes + l) * width + j`` (ggml-quants.c, dequantize_row_*). Bits go up by a product: numpy's shift to the
    left takes ten times as long.
    """

    field: str
    bits: int
    low: int
    width: int

    def write(self, blocks: Blocks, codes: Bytes) -> None:
        field = self._groups(blocks)
        if self.bits == self.width == 1:
            whole = np.packbits(codes & np.uint8(1 << self.low), bitorder="little")
        else:
            lanes = np.ascontiguousarray(codes).view(field.dtype).reshape(*field.shape, -1)
            whole = self._lane(lanes, 0)
            for i in range(1, lanes.shape[-1]):
                whole |= self._lane(lanes, i) * np.uint8(1 << self.bits * i)
        field[...] = whole.view(field.dtype).reshape(field.shape)

    def read(self, blocks: Blocks) -> Bytes:
        field = self._groups(blocks)
        whole = np.ascontiguousarray(field).reshape(-1).view(np.uint8)
        if self.bits == self.width == 1:
            codes = np.unpackbits(whole, bitorder="little")
            codes *= np.uint8(1 << self.low)
            return codes.reshape(*blocks.shape, -1)
        lanes = np.empty((*field.shape, 8 // self.bits), field.dtype)
        for i in range(lanes.shape[-1]):
            lane = (whole >> np.uint8(self.bits * i) if i else whole) & np.uint8(2**self.bits - 1)
            if self.low:
                lane *= np.uint8(1 << self.low)
            lanes[..., i] = lane.view(field.dtype).reshape(field.shape)
        return lanes.reshape(-1).view(np.uint8).reshape(*blocks.shape, -1)

    def _groups(self, blocks: Blocks) -> NDArray[Any]:
        """The field by groups, ``width`` bytes to an item, which numpy copies as a whole: [..., groups]."""
        groups: NDArray[Any] = blocks[self.field].view(f"V{self.width}")
        return groups

    def _lane(self, lanes: NDArray[Any], i: int) -> Bytes:
        """What the plane holds of the codes of a lane, a byte each."""
        lane = np.ascontiguousarray(lanes[..., i]).reshape(-1).view(np.uint8)
        return (lane >> np.uint8(self.low) if self.low else lane) & np.uint8(2**self.bits - 1)


class Trits:
    """TQ1_0: five trits to a byte as a fraction of 256, the first the most significant.

    A byte is ``ceil(256 * n / 243)`` of the number n that the trits spell; multiplying by 3 brings the next one to
    the top (ggml-quants.c, quantize_row_tq1_0_ref). Runs of 160, 80 and 16 codes lie in bytes 32, 16 and 4 apart.
    """

    RUNS = (("qs", 0, 32, 5), ("qs", 32, 16, 5), ("qh", 0, 4, 4))  # field, first byte, bytes, trits in each

    def write(self, blocks: Blocks, codes: Bytes) -> None:
        start = 0
        for field, first, count, trits in self.RUNS:
            part = codes[..., start : start + count * trits].reshape(*blocks.shape, trits, count).astype(np.uint16)
            number = sum(part[..., i, :] * 3 ** (4 - i) for i in range(trits))
            blocks[field][..., first : first + count] = (number * 256 + 242) // 243
            start += count * trits

    def read(self, blocks: Blocks) -> Bytes:
        runs = []
        for field, first, count, trits in self.RUNS:
            byte = blocks[field][..., first : first + count]
            runs += [(byte * np.uint8(3**i)).astype(np.uint16) * 3 >> 8 for i in range(trits)]
        return np.concatenate(runs, -1).astype(np.uint8)


class Scales(Protocol):
    """The field ``scales`` of a K-quant: the integer scales of its blocks, and their minima where it has them."""

    def pack(self, scales: Bytes, mins: Bytes) -> Bytes:
        """int8 seen as bytes [..., blocks] -> the field's bytes."""

    def unpack(self, field: Bytes) -> tuple[Bytes, Bytes]:
        """The inverse; minima that do not exist are empty."""


class Nibbles:
    """Q2_K: a scale and a minimum of 4 bits share a byte."""

    def pack(self, scales: Bytes, mins: Bytes) -> Bytes:
        return scales | mins << np.uint8(4)

    def unpack(self, field: Bytes) -> tuple[Bytes, Bytes]:
        return field & np.uint8(15), field >> np.uint8(4)


class Sixes:
    """Q4_K, Q5_K: eight scales and eight minima of 6 bits in 12 bytes (ggml-quants.c, get_scale_min_k4).

    Four scales and four minima lie in the low bits of eight bytes, whose two high bits belong to the other
    four; their low nibbles share the last four bytes.
    """

    def pack(self, scales: Bytes, mins: Bytes) -> Bytes:
        first, second = slice(0, 4), slice(4, 8)
        low = [part[..., first] | (part[..., second] >> 4) << 6 for part in (scales, mins)]
        return np.concatenate([*low, scales[..., second] & 15 | (mins[..., second] & 15) << 4], -1)

    def unpack(self, field: Bytes) -> tuple[Bytes, Bytes]:
        scales, mins, nibbles = field[..., :4], field[..., 4:8], field[..., 8:]
        return (
            np.concatenate([scales & 63, nibbles & 15 | (scales >> 6) << 4], -1),
            np.concatenate([mins & 63, nibbles >> 4 | (mins >> 6) << 4], -1),
        )


class SignedSixes:
    """Q3_K: sixteen scales of 6 bits, stored plus 32, in 12 bytes (ggml-quants.c, dequantize_row_q3_K).

    Low nibbles of scales i and i + 8 share byte i; high bits of scales j, j + 4, j + 8, j + 12 share byte 8 + j.
    """

    HIGH = Plane("high", bits=2, low=4, width=4)

    def pack(self, scales: Bytes, mins: Bytes) -> Bytes:
        stored = (scales + np.uint8(32)) & np.uint8(63)
        high = np.empty(scales.shape[:-1], [("high", "u1", 4)])
        self.HIGH.write(high, stored)
        return np.concatenate([stored[..., :8] & 15 | (stored[..., 8:] & 15) << 4, high["high"]], -1)

    def unpack(self, field: Bytes) -> tuple[Bytes, Bytes]:
        high = np.ascontiguousarray(field[..., 8:]).view([("high", "u1", 4)])[..., 0]
        stored = np.concatenate([field[..., :8] & 15, field[..., :8] >> 4], -1) | self.HIGH.read(high)
        return stored - np.uint8(32), stored[..., :0]


class Plain:
    """Q6_K: sixteen scales of 8 bits."""

    def pack(self, scales: Bytes, mins: Bytes) -> Bytes:
        return scales

    def unpack(self, field: Bytes) -> tuple[Bytes, Bytes]:
        return field, field[..., :0]
