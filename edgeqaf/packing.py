"""Codes as bytes. Codes of 2 and 4 bits lie densely, earlier columns in lower bits; 8-bit codes are their own.

Codes of 3 bits take the room of 4, as in the files that carry them: eight codes in three bytes would save
a bit a weight of a folder that no device sees. What a grid needs is `Grid.bits_per_weight`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeqaf.grid import Grid

RUN = 2**18
WIDTHS = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}  # bits of a grid's code -> bits it is stored in


def pack_codes(codes: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    """int8 [out, in] -> uint8 [out, in * width / 8]; the inverse of `unpack_codes`."""
    width = WIDTHS[grid.bits]
    if width == 8:
        return np.ascontiguousarray(codes, np.int8).view(np.uint8)
    packed = np.empty((codes.shape[0], codes.shape[1] * width // 8), np.uint8)
    for rows in _runs(packed):
        packed[rows] = _pack(np.ascontiguousarray(codes[rows], np.int8).view(np.uint8), width)
    return packed


def unpack_codes(packed: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    """uint8 [out, in * width / 8] -> int8 [out, in]. A stray bit above a 3-bit code gives a code off the grid."""
    width = WIDTHS[grid.bits]
    if width == 8:
        return packed.view(np.int8)
    codes = np.empty((packed.shape[0], packed.shape[1] * 8 // width), np.int8)
    for rows in _runs(packed):
        codes[rows] = unpack(packed[rows], width).view(np.int8)
    return codes


def _runs(packed: np.ndarray[Any, Any]) -> Iterator[slice]:
    """Row ranges of about `RUN` bytes, whose passes stay in a cache."""
    rows = max(1, RUN // max(1, packed.shape[1]))
    return (slice(start, start + rows) for start in range(0, packed.shape[0], rows))


def _pack(packed: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    while width < 8:  # two neighbours into one byte, as 16-bit numbers
        pairs = packed.view("<u2")
        packed = (pairs | pairs >> (8 - width)).astype(np.uint8)
        width *= 2
    return packed


def unpack(packed: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Bytes as unsigned integers of 2, 4 or 8 bits, lower bits first: uint8 [..., n * width / 8] -> [..., n]."""
    codes, now = packed, 8
    while now > width:
        now //= 2
        pairs = codes.astype("<u2")
        pairs |= pairs << (8 - now)
        pairs &= (2**now - 1) * 0x0101
        codes = pairs.view(np.uint8)
    return codes
