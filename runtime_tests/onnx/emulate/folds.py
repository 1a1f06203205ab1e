"""How the lanes of a register become one sum."""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, allow-untyped-calls

from enum import IntEnum

from edgeqaf.compiled import compiled
from runtime_tests.loops import TILE, halve


class Fold(IntEnum):
    """The order."""

    HALVES = 0  # the upper half onto the lower, until one is left
    QUADS = 1  # four neighbours in order, then the quads by halves
    PAIRS = 2  # neighbours, then neighbouring sums, until one is left
    EVENS = 3  # even lanes by pairs, odd lanes by pairs, then the two
    HALF_PAIRS = 4  # the upper half onto the lower once, then pairs


@compiled
def fold(held, tree):
    """Add float32 [lanes, TILE] up in place; the sum is ``held[0]``. EVENS is of eight lanes."""
    if tree == Fold.HALF_PAIRS:
        half = len(held) // 2
        for lane in range(half):
            for r in range(TILE):
                held[lane, r] += held[lane + half, r]
        _pairs(held[:half])
    elif tree == Fold.HALVES:
        halve(held)
    elif tree == Fold.QUADS:
        quads = len(held) // 4
        for quad in range(quads):
            for r in range(TILE):
                first = held[4 * quad, r] + held[4 * quad + 1, r]
                held[quad, r] = (first + held[4 * quad + 2, r]) + held[4 * quad + 3, r]
        halve(held[:quads])
    elif tree == Fold.PAIRS:
        _pairs(held)
    else:
        for r in range(TILE):
            even = (held[0, r] + held[2, r]) + (held[4, r] + held[6, r])
            held[0, r] = even + ((held[1, r] + held[3, r]) + (held[5, r] + held[7, r]))


@compiled
def _pairs(held):
    left = len(held) // 2
    while left:
        for lane in range(left):
            for r in range(TILE):
                held[lane, r] = held[2 * lane, r] + held[2 * lane + 1, r]
        left //= 2
