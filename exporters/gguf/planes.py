"""`exporters.gguf.codings.Plane` compiled: the same bytes, at the memory's rate.

A function is made for each place of a plane in a block. Every number in it is then a constant to LLVM, which makes
vector instructions of the innermost loop; read as numbers that a caller gives, they cost six times as much.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgeqaf.compiled import compiled

Bytes = NDArray[np.uint8]
Kernel = Callable[[Bytes, Bytes], None]


@cache
def reader(offset: int, size: int, width: int, bits: int, low: int, add: bool) -> Kernel:
    """``f(raw [n, bytes of a block], codes [n, weights])``: the plane in bytes ``offset`` to ``offset + size``.

    width, bits, low: as in `Plane`. add: the codes hold other planes already; if not, they are overwritten.
    """
    lanes, groups, mask, up = 8 // bits, size // width, np.uint8(2**bits - 1), np.uint8(low)

    def read(raw: Bytes, codes: Bytes) -> None:
        for i in range(raw.shape[0]):
            for g in range(groups):
                byte = raw[i, offset + g * width : offset + (g + 1) * width]
                for lane in range(lanes):
                    down = np.uint8(bits * lane)
                    start = (g * lanes + lane) * width
                    code = codes[i, start : start + width]
                    for j in range(width):
                        part = np.uint8(np.uint8(np.uint8(byte[j] >> down) & mask) << up)
                        code[j] = np.uint8(code[j] | part) if add else part

    return compiled(read)


@cache
def writer(offset: int, size: int, width: int, bits: int, low: int, shift: int) -> Kernel:
    """``f(codes [n, weights], raw [n, bytes of a block])``, the inverse of `reader`, of codes plus ``shift``."""
    lanes, groups, mask, down, more = 8 // bits, size // width, np.uint8(2**bits - 1), np.uint8(low), np.uint8(shift)

    def write(codes: Bytes, raw: Bytes) -> None:
        for i in range(raw.shape[0]):
            for g in range(groups):
                byte = raw[i, offset + g * width : offset + (g + 1) * width]
                for lane in range(lanes):
                    up = np.uint8(bits * lane)
                    start = (g * lanes + lane) * width
                    code = codes[i, start : start + width]
                    for j in range(width):
                        part = np.uint8(np.uint8(np.uint8(np.uint8(code[j] + more) >> down) & mask) << up)
                        byte[j] = np.uint8(byte[j] | part) if lane else part

    return compiled(write)
