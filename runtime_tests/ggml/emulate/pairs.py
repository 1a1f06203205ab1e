"""Types of one level before AVX2, and on ARM: the groups of a block's products share lanes.

A block's 32 products are eight groups of four neighbours. AVX and NEON add group g and group g + 4 in one lane, SSE
and SVE of 256 bits keep the two apart; NEON without dot products has groups of two. Dot products take blocks in pairs,
each block of a pair with lanes of its own; a last block without a partner is multiplied and added to the finished sum,
as plain C does it. NEON's matrix product takes block by block.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable
from enum import Enum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgeqaf.compiled import compiled
from runtime_tests.ggml.emulate.activations import BLOCK
from runtime_tests.loops import TILE, add, dot, fma, halve


class Tree(Enum):
    """How lanes are added in the end."""

    HALVES = "half onto half (AVX)"
    NEIGHBOURS = "neighbours (SSE, NEON)"
    BLOCKS = "the two blocks of a pair, then neighbours (SVE)"


@cache
def kernel(
    lanes: int, fused: bool, left: bool, tree: Tree = Tree.HALVES, alternate: bool = True, group: int = 4,
    offsets: bool = False,
) -> Callable[..., None]:  # fmt: skip
    """The loop; its arguments and options are those of `lanes.kernel`, ``left`` of a last block without a partner.

    lanes:     of both blocks together: 8, or with the groups apart 16.
    alternate: the blocks of a pair have lanes of their own; else all blocks have the same ones, and none is alone.
    group:     neighbouring products that a lane takes together.
    offsets:   those of Q4_1, a pair's two added to a sum of their own.
    """
    each, place = lanes // 2 if alternate else lanes, _places(lanes, tree)

    @compiled
    def run(x, dx, sx, w, dw, mw, y):
        total, scale = np.empty(TILE, np.int32), np.empty(TILE, np.float32)
        held, blocks = np.empty((lanes, TILE), np.float32), dx.shape[1]
        for i in range(len(x)):
            held[:] = 0
            for b in range(blocks // 2 * 2 if alternate else blocks):
                for r in range(TILE):
                    scale[r] = dx[i, b] * dw[b, r]
                for lane in range(each):
                    total[:] = 0
                    for first in range(b * BLOCK + lane * group, (b + 1) * BLOCK, each * group):
                        dot(total, x[i], w, first, first + group, 1)
                    add(held[place[b % 2 * each + lane if alternate else lane]], total, scale, fused)
            halve(held)
            if offsets:
                _offsets(held[0], sx[i], mw)
            if blocks % 2 and alternate:
                b = blocks - 1
                total[:] = 0
                dot(total, x[i], w, b * BLOCK, (b + 1) * BLOCK, 1)
                if offsets:
                    _alone_with_offset(held[0], total, dx[i, b], dw[b], sx[i, b], mw[b])
                else:
                    _alone(held[0], total, dx[i, b], dw[b], left, fused)
            for r in range(TILE):
                y[i, r] = held[0, r]

    return run


@compiled
def _alone(held, total, d, own, left, fused):
    """Add a block without a partner."""
    for r in range(TILE):
        count = np.float32(total[r])
        one, other = (count * own[r], d) if left else (count, own[r] * d)
        held[r] = fma(one, other, held[r]) if fused else held[r] + one * other


@compiled
def _alone_with_offset(held, total, d, own, s, least):
    for r in range(TILE):
        held[r] += fma(own[r] * d, np.float32(total[r]), least[r] * s)


@compiled
def _offsets(held, s, least):
    """Add the offsets of all pairs."""
    for r in range(TILE):
        offset = np.float32(0)
        for b in range(0, len(s) - 1, 2):
            offset += fma(least[b + 1, r], s[b + 1], least[b, r] * s[b])
        held[r] += offset


def _places(lanes: int, tree: Tree) -> NDArray[np.int64]:
    """Where each lane stands, for a tree of halves to add them in the order of another tree.

    It adds neighbours where the bits of their numbers are reversed; with the first bit, a block's, left where it is,
    the blocks come first.
    """
    bits = lanes.bit_length() - 1
    kept = {Tree.HALVES: bits, Tree.NEIGHBOURS: 0, Tree.BLOCKS: 1}[tree]
    names = [f"{lane:0{bits}b}" for lane in range(lanes)]
    return np.array([int(name[:kept] + name[kept:][::-1], 2) for name in names])
