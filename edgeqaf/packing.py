"""Codes as bytes: two 4-bit codes share one, the even column in the low nibble; 8-bit codes are their own."""

from typing import Any

import numpy as np

from edgeqaf.grid import Grid


def pack_codes(codes: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    """int8 [out, in] -> uint8 [out, in * bits / 8]; the inverse of `unpack_codes`."""
    raw = codes.astype(np.int8).view(np.uint8)
    if grid.bits == 8:
        return raw
    return raw[:, 0::2] | (raw[:, 1::2] << 4)


def unpack_codes(packed: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    """uint8 [out, in * bits / 8] -> int8 [out, in]."""
    if grid.bits == 8:
        return packed.view(np.int8)
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), np.int8)
    codes[:, 0::2], codes[:, 1::2] = packed & 15, packed >> 4
    return codes
