"""Kernels of accuracy level 4: activations are rounded to 8 bits per block, products are of integers.

A block's integer products are added up in lanes, exactly, and each lane is a chain of floats over blocks. Where codes
are unsigned the zero points' share is a chain of its own: the block's sum of activations times
``-(scale * zero point)``, added at the end; where they are centred there is none. ARM has one lane, and scales of its
own.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from runtime_tests.loops import TILE, add, dot, fma
from runtime_tests.onnx.emulate.folds import Fold, fold

BLOCK = 32
MOST = np.float32(127)
Loop = Callable[..., None]


@dataclass(frozen=True)
class Rounded:
    """Activations as these kernels see them.

    codes:       int8 [m, in].
    scale, sums: float32 [m, in / 32]: the blocks' scales; those times the sum of the block's codes.
    """

    codes: NDArray[np.int8]
    scale: Floats
    sums: Floats


def rounded(x: Floats, inverse: bool = False) -> Rounded:
    """float32 [m, in] -> its 8-bit form: ``x * (127 / largest)``, halves to even.

    The scale is ``largest / 127``; inverse: what the integers were made with, inverted (ARM).
    """
    blocks = x.reshape(len(x), -1, BLOCK)
    largest = np.abs(blocks).max(-1)
    factor = np.divide(MOST, largest, out=np.zeros_like(largest), where=largest != 0)
    scale = np.divide(np.float32(1), factor, out=np.zeros_like(factor), where=factor != 0)
    scale = scale if inverse else largest / MOST
    codes = np.rint(blocks * factor[..., None])
    return Rounded(codes.astype(np.int8).reshape(x.shape), scale, scale * codes.sum(-1, dtype=np.float32))


@dataclass(frozen=True)
class Lanes:
    """How a kernel lays ``len(self.lane)`` blocks that it takes at once into lanes.

    lane:  of each block and each of its parts.
    first: the inputs of a part: four from here;
    then:  and four that begin so much further on; 0 for none.
    """

    lane: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    then: int = 0


EIGHT = Lanes((tuple(range(8)),), tuple(range(0, BLOCK, 4)))
SIXTEEN = Lanes(((0, 1, 4, 5), (8, 9, 12, 13), (2, 3, 6, 7), (10, 11, 14, 15)), (0, 4, 16, 20), then=8)  # AVX-512
PAIR = Lanes(((0, 1, 4, 5), (2, 3, 6, 7)), (0, 8, 16, 24), then=4)  # AVX2


@cache
def blocks(several: Lanes, tree: Fold) -> Loop:
    """Several blocks at a time, and what is left over in eight lanes of four inputs; sixteen become eight before that.

    ``(x, dx, sx, w, dw, zw, y)``: `Rounded`'s arrays; codes int16 [in, TILE], scales and ``-(scale * zero point)``,
    or zeros, float32 [blocks, TILE]; y float32 [m, TILE].
    """
    lane, first, then = np.array(several.lane), np.array(several.first), several.then
    eight, fours = np.array(EIGHT.lane[0]), np.array(EIGHT.first)
    count, together = lane.size, len(lane)

    @compiled
    def run(x, dx, sx, w, dw, zw, y):
        scale, point = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        held = np.empty((count, TILE), np.float32)
        whole = dx.shape[1] // together * together
        for i in range(len(x)):
            held[:], point[:] = 0, 0
            for b in range(dx.shape[1]):
                _scales(dx[i, b], sx[i, b], dw[b], zw[b], scale, point)
                if b == whole:
                    _to_eight(held)
                if b < whole:
                    _block(held, x[i], w, b * BLOCK, scale, lane[b % together], first, then)
                else:
                    _block(held, x[i], w, b * BLOCK, scale, eight, fours, 0)
            if dx.shape[1] == whole:
                _to_eight(held)
            fold(held[:8], tree)
            for r in range(TILE):
                y[i, r] = held[0, r] + point[r]

    return run


@cache
def one_lane() -> Loop:
    """A block at a time, in the one float of an output: its share of the zero points, then its products (ARM).

    Arguments as in `blocks`; codes and zero points less 8.
    """

    @compiled
    def run(x, dx, sx, w, dw, zw, y):
        total, scale, held = np.empty(TILE, np.int32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        for i in range(len(x)):
            held[:] = 0
            for b in range(dx.shape[1]):
                total[:] = 0
                dot(total, x[i], w, b * BLOCK, (b + 1) * BLOCK, 1)
                _scales(dx[i, b], sx[i, b], dw[b], zw[b], scale, held)
                add(held, total, scale, True)
            y[i] = held

    return run


@cache
def apart(unsigned: bool, lanes: int) -> Loop:
    """Codes of 8 bits on ARM: products, zero points' share and what ``unsigned`` adds, each a float of its own.

    unsigned: activations plus 128, which processors without int8 matrix products multiply; the weights' share of these
    128 is taken off at the end. Large terms come and go, so the sum is further off. lanes: of products, four inputs to
    a lane in turn; neighbours are added in the end. Arguments as in `blocks`.
    """
    added = 128 if unsigned else 0

    @compiled
    def run(x, dx, sx, w, dw, zw, y):
        total, sums = np.empty((lanes, TILE), np.int32), np.empty(TILE, np.int32)
        held, point, left = np.empty((lanes, TILE), np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        for i in range(len(x)):
            held[:], point[:], left[:] = 0, 0, 0
            for b in range(dx.shape[1]):
                total[:], sums[:] = 0, 0
                d, count = dx[i, b], np.int32(added * BLOCK)
                for k in range(b * BLOCK, (b + 1) * BLOCK):
                    count += np.int32(x[i, k])
                    for r in range(TILE):
                        total[k // 4 % lanes, r] += (np.int32(x[i, k]) + added) * np.int32(w[k, r])
                        sums[r] += np.int32(w[k, r])
                s = d * np.float32(count)
                for r in range(TILE):
                    for lane in range(lanes):
                        held[lane, r] = fma(np.float32(total[lane, r]), d * dw[b, r], held[lane, r])
                    point[r] = fma(s, zw[b, r], point[r])
                    left[r] = fma(d, np.float32(-added) * (np.float32(sums[r] - 128 * BLOCK) * dw[b, r]), left[r])
            fold(held, Fold.PAIRS)
            for r in range(TILE):
                y[i, r] = held[0, r] + point[r] + left[r]

    return run


@cache
def quartets() -> Loop:
    """Codes of 2 bits: of four blocks the first and third, and the second and fourth, are added up by themselves.

    In eight lanes of four inputs; a block that is not there is one of zeros. Arguments as in `blocks`.
    """
    lane, first = np.array(EIGHT.lane[0]), np.array(EIGHT.first)

    @compiled
    def run(x, dx, sx, w, dw, zw, y):
        scale, point = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        held, some = np.empty((8, TILE), np.float32), np.empty((2, 8, TILE), np.float32)
        for i in range(len(x)):
            held[:], point[:] = 0, 0
            for b in range(dx.shape[1]):
                if b % 4 == 0:
                    some[:] = 0
                _scales(dx[i, b], sx[i, b], dw[b], zw[b], scale, point)
                _block(some[b % 2], x[i], w, b * BLOCK, scale, lane, first, 0)
                if b % 4 == 3 or b == dx.shape[1] - 1:
                    for part in range(8):
                        for r in range(TILE):
                            held[part, r] += some[0, part, r] + some[1, part, r]
            fold(held, Fold.HALVES)
            for r in range(TILE):
                y[i, r] = held[0, r] + point[r]

    return run


@compiled
def _block(held, x, w, start, scale, lane, first, then):
    """Add a block's products to its lanes."""
    total = np.empty(TILE, np.int32)
    for part in range(len(first)):
        total[:] = 0
        at = start + first[part]
        dot(total, x, w, at, at + 4, 1)
        if then:
            dot(total, x, w, at + then, at + then + 4, 1)
        add(held[lane[part]], total, scale, True)


@compiled
def _scales(d, s, own, points, scale, point):
    """A block's scales, and its share of the zero points."""
    for r in range(TILE):
        scale[r] = d * own[r]
        point[r] = fma(s, points[r], point[r])


@compiled
def _to_eight(held):
    """Sixteen lanes to eight; eight stay."""
    if len(held) > 8:
        for lane in range(8):
            for r in range(TILE):
                held[lane, r] += held[lane + 8, r]
