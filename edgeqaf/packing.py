"""Codes as bytes. Codes of 2 and 4 bits lie densely, earlier columns in lower bits; 8-bit codes are their own.

Codes of 3 bits take the room of 4, as in the files that carry them: eight codes in three bytes would save
a bit a weight of a folder that no device sees. What a grid needs is `Grid.bits_per_weight`.
"""

from typing import Any

import numpy as np

from edgeqaf.grid import Grid

WIDTHS = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}  # bits of a grid's code -> bits it is stored in


def pack_codes(codes: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    """int8 [out, in] -> uint8 [out, in * width / 8]; the inverse of `unpack_codes`."""
    width = WIDTHS[grid.bits]
    raw = codes.astype(np.int8).view(np.uint8)
    each = 8 // width
    packed: np.ndarray[Any, Any] = raw[:, 0::each]
    for i in range(1, each):
        packed = packed | (raw[:, i::each] << i * width)
    return packed


def unpack_codes(packed: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    """uint8 [out, in * width / 8] -> int8 [out, in]. A stray bit above a 3-bit code gives a code off the grid."""
    width = WIDTHS[grid.bits]
    if width == 8:
        return packed.view(np.int8)
    each = 8 // width
    codes = np.empty((packed.shape[0], packed.shape[1] * each), np.int8)
    for i in range(each):
        codes[:, i::each] = (packed >> i * width) & (2**width - 1)
    return codes
