"""Uniform noise from a counter: the same number for the same (seed, round, position), wherever it is drawn.

A generator with a state gives other numbers to another thread count, after a resume, or on another
device. Here a position's number follows from where and when it is used, in integer arithmetic alone:

    noise[r, c] = T[(hash(seed, round, r // 256) + 61 (r mod 256) + c) mod its range]

T is a fixed table of hashed numbers, 16 bits each. Hashing every position anew costs more than the whole
update that the noise is for (2.9 of 8 ns a weight); a walk through a table that fits the cache costs 0.2.
What a walk gives up is independence between weights of one round whose walks overlap. Rounding needs it
of one weight's rounds, and these start at independent places.
"""

from functools import cache

import torch
from torch import Tensor

WORD = 2**32
SPREAD = 0x9E3779B1  # 2^32 over the golden ratio: neighbours land far apart
LENGTH, STRIDE, ROWS = 2**19, 61, 256
FACTORS = 0x7FEB352D, 0x846CA68B
BAND = 0x27D4EB2F  # from one band of `ROWS` rows to the next


def noise(seed: int, turn: int, first: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """float32 [rows, columns] in [0, 1), multiples of 2^-16: a view of the table, not to be written to.

    first: index of the first row, a multiple of `ROWS`; rows: at most `ROWS`; columns: at most 2^18.
    """
    start = mix(key(seed, turn) + first // ROWS * BAND) % places(columns)
    return table(str(device)).as_strided((rows, columns), (STRIDE, 1), start)


def key(seed: int, turn: int) -> int:
    """What the bands of one round share, 32 bits."""
    return (seed * 0x85EBCA6B + turn * 0xC2B2AE35) % WORD


def places(columns: int) -> int:
    """Where a band of so many columns may start in the table."""
    return LENGTH - STRIDE * ROWS - columns


@cache
def table(device: str) -> Tensor:
    """T: float32 [2^19]; entry i is 16 bits of a hash of i over 2^16."""
    word = torch.arange(LENGTH // 2, dtype=torch.int64) * SPREAD % WORD
    for factor in FACTORS:
        word = (word ^ (word >> 16)) * factor % WORD
    word ^= word >> 16
    halves = torch.stack([word & 0xFFFF, word >> 16], 1).flatten()
    return (halves.float() * 2.0**-16).to(device)


def mix(x: int) -> int:
    """A 32-bit hash of an integer: multiply and xor-shift, twice."""
    x %= WORD
    for factor in FACTORS:
        x = ((x ^ (x >> 16)) * factor) % WORD
    return x ^ (x >> 16)
