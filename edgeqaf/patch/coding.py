"""Differences of bytes, entropy-coded: where most are zero, the gaps between the others; else the bytes themselves.

A tuned model's codes differ from its base's in some per cent of places, by one or two steps. If each place moves
with probability p, the runs of zeros between moves follow a geometric law, whose entropy H(p) / p per move is what a
Huffman code comes within a few per cent of, at any p up to a half: its one bit at least is spent per move, not per
place. Moves are a stream of their own. Above a half the differences are coded as they are; where gaps are long,
a second stream takes their low bytes.

    0, stream(differences)                              one for each place
    1, stream(gaps), stream(moves)                      gap: zeros before a move, 0 to 254; 255: so many and no move
    2, stream(gaps / 256), stream(moves), stream(gaps % 256)

A stream is one of deflate's Huffman codes, without its matches, which find nothing in noise. Of numbers that have
few values, as moves do, several go into a byte, as digits: a code for +1 and -1 alone would spend a bit and a
half on each, since deflate's sign for the end is a third.

    stream: k, its k values (none: bytes are as they are), deflate(bytes of digits to the base k, the first the lowest)

Differences are taken byte for byte, modulo 256. A code that moved by -1 is 255 apart from what it was.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused

Bytes = NDArray[np.uint8]
DENSE, NEAR, FAR = range(3)
LONG = 255  # a gap without a move
MOST = 16  # values for which numbers are digits
WIDE = 128  # zeros between moves, on average, from which gaps take two bytes


def encode(before: Bytes, after: Bytes, counts: NDArray[np.int64] | None = None) -> bytes:
    """What turns ``before`` into ``after``, uint8 [n] each; nothing where they are equal.

    counts: int64 [256], to which it is added how often each difference occurs.
    """
    different = after - before
    places = np.flatnonzero(different != 0)
    moves = different[places]
    if counts is not None:
        counts += np.bincount(moves, minlength=256)
        counts[0] += different.size - places.size
    if places.size == 0:
        return b""
    if 2 * places.size > different.size:
        return bytes([DENSE]) + _deflated(different)
    kind = FAR if WIDE * places.size < different.size else NEAR
    zeros = np.diff(places, prepend=-1) - 1
    whole, rest = np.divmod(zeros >> 8 if kind == FAR else zeros, LONG)
    gaps = np.full(int(whole.sum()) + places.size, LONG, np.uint8)
    gaps[np.cumsum(whole + 1) - 1] = rest
    low = _deflated(zeros.astype(np.uint8), plain=True) if kind == FAR else b""
    return bytes([kind]) + _deflated(gaps, plain=True) + _deflated(moves) + low


def add(coded: bytes, values: Bytes, *, times: int = 1) -> None:
    """Turn ``before`` into ``after`` in place; with times=-1, ``after`` into ``before``. Raises Refused for no code."""
    kind, streams = coded[0] if coded else -1, list(_inflated(coded[1:], values.size))
    sign = np.uint8(times % 256)
    fits = False
    if kind == DENSE and len(streams) == 1 and _padded_to(values.size, streams[0]):
        values += sign * streams[0].numbers[: values.size]
        fits = True
    elif (kind, len(streams)) in ((NEAR, 2), (FAR, 3)):
        gaps, moves, *low = streams
        places = _places(gaps.numbers, low[0].numbers if low else None) if gaps.digits == 1 else None
        if places is not None and _padded_to(places.size, moves) and (not places.size or places[-1] < values.size):
            values[places] += sign * moves.numbers[: places.size]
            fits = True
    if not fits:
        raise Refused("differences that do not fit what they are of", "the patch is damaged; fetch or make it again")


def _places(gaps: Bytes, low: Bytes | None) -> NDArray[np.int64] | None:
    """Where the moves are, ascending; None where there are not as many low bytes. low: of gaps that take two bytes."""
    moving = gaps != LONG
    steps = gaps + moving  # 255 at most
    if low is not None:
        if np.count_nonzero(moving) != low.size:
            return None
        steps = gaps * np.int64(256) + moving
        steps[moving] += low
    places: NDArray[np.int64] = np.cumsum(steps, dtype=np.int64)[moving]
    return places - 1


@dataclass(frozen=True)
class _Stream:
    """numbers: as they were, and fewer than ``digits`` more."""

    numbers: Bytes
    digits: int


def _padded_to(count: int, stream: _Stream) -> bool:
    return 0 <= stream.numbers.size - count < stream.digits


def _deflated(numbers: Bytes, *, plain: bool = False) -> bytes:
    """A stream. plain: one number to a byte, however few values there are."""
    found = np.flatnonzero(np.bincount(numbers, minlength=256))
    few = found.size <= MOST and not plain
    table = np.resize(found, max(2, found.size)).astype(np.uint8) if few else np.empty(0, np.uint8)
    data = numbers
    if table.size:
        digits = _digits(table.size)
        index = np.zeros(256, np.uint8)
        index[found] = np.arange(found.size)
        digit = np.pad(index[numbers], (0, -numbers.size % digits)).reshape(-1, digits)
        data = sum((digit[:, i] * np.uint8(table.size**i) for i in range(1, digits)), digit[:, 0])
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return bytes([table.size]) + table.tobytes() + compressor.compress(data.data) + compressor.flush()


def _digits(base: int) -> int:
    """How many digits to a base a byte holds."""
    return next(n for n in range(8, 0, -1) if base**n <= 256)


def _inflated(data: bytes, most: int) -> Iterator[_Stream]:
    """The streams, of at most ``most`` bytes each; none after one that is damaged."""
    while data:
        base = data[0]
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = np.frombuffer(stream.decompress(data[1 + base :], most + 1), np.uint8)
        except zlib.error:
            return
        if not stream.eof or found.size > most or base == 1 or base > MOST:
            return
        digits = _digits(base) if base else 1
        if base:
            table = np.frombuffer(data[1 : 1 + base], np.uint8)
            every = np.arange(256)[:, None] // base ** np.arange(digits) % base
            found = table[every].view(f"V{digits}").reshape(-1)[found].view(np.uint8)
        yield _Stream(found, digits)
        data = stream.unused_data
