"""Flash attention: softmax on the way, so that no scores are kept. ggml has two forms of it on the CPU.

**Rows.** Where fewer than `ROWS` tokens are evaluated, each goes over the cells one by one: score, new maximum or
share, mix. The query is rounded to float16 for the score, and the mix is *held in float16*: rounded at every cell.
Where the cells, padded to 256, are 512 or more and the token is alone, threads take a part of the cells each and their
mixes are put together: the only place where the number of threads shows in the bits.

**Tiles.** From `ROWS` tokens on, `TILE` cells at a time: scores of the tile (the query as it is, in float32), its
maximum, exponentials in vectors, and the mix in float32. A score is one sum over the head, and the mix one over cells.

The cache is float16 in both: llama.cpp rounds a float32 one on the way in.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from edgeqaf.qtensor import to_half
from runtime_tests.ggml.forward.arithmetic import Arithmetic
from runtime_tests.ggml.forward.attention import NONE, Cache
from runtime_tests.ggml.forward.exponential import grow
from runtime_tests.ggml.forward.libm import expf
from runtime_tests.loops import madd

ROWS, TILE = 64, 64  # GGML_FA_TILE_Q, GGML_FA_TILE_KV
PADDED, SHARED = 256, 512  # cells are padded to; from so many on threads share those of one row
ONE, ZERO, INFINITY = np.float32(1), np.float32(0), np.float32(np.inf)
SMALLEST, BEYOND = np.float32(2.0**-14), np.float32(2.0**16)  # of float16: the first that is normal, what is too large
MAGIC = np.float32(0.75)  # added to what is smaller, it leaves multiples of 2^-24


def flash(arithmetic: Arithmetic, q: Floats, cache: Cache, scale: np.float32, threads: int) -> Floats:
    """q float32 [m, heads, head size], of the last m positions in the cache; float32 [m, heads * head size]."""
    rows, heads, size = q.shape
    used, group = cache.used, heads // len(cache.keys)
    mixed = np.empty((heads, rows, size), np.float32)
    tiled = rows >= ROWS and (arithmetic.single.tile or arithmetic.single.dot).fills(size)
    padded = -(-used // PADDED) * PADDED
    part = -(-padded // threads) if rows == 1 and padded >= SHARED else padded
    for head in range(heads):
        keys, values = np.ascontiguousarray(cache.keys[head // group, :, :used]), cache.values[head // group, :used]
        queries, first = np.ascontiguousarray(q[:, head]), used - rows
        if tiled:
            _tiles(queries, keys, values, scale, first, arithmetic.exponential, mixed[head])
        else:
            scores = arithmetic.half.dot.product(to_half(queries), keys)
            _rows(scores, values, scale, first, part, arithmetic.fused, mixed[head])
    return np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(rows, -1)


@compiled
def _rows(scores, values, scale, first, part, fused, y):
    """scores float32 [m, cells], row i of position ``first + i``; values [cells, size]; y [m, size]. part: cells to a
    thread.
    """
    mix = np.empty(y.shape[1], np.float32)
    for i in range(len(y)):
        total, most = ZERO, NONE
        y[i] = 0
        for start in range(0, first + i + 1, part):
            end = min(start + part, first + i + 1)
            mix[:] = 0
            added, highest = _cells(scores[i, start:end], values[start:end], scale, fused, mix)
            higher = max(most, highest)
            old, new = expf(most - higher), expf(highest - higher)
            for d in range(len(mix)):
                y[i, d] = madd(y[i, d], old, mix[d] * new, fused)
            total, most = madd(total, old, added * new, fused), higher
        y[i] *= ONE / total


@compiled
def _cells(scores, values, scale, fused, mix):
    """The mix of some cells' values, and its sum of shares and maximum."""
    total, most = ZERO, NONE
    for k in range(len(scores)):
        score = scores[k] * scale
        old, share = ONE, ONE
        if score > most:
            old, most = expf(most - score), score
            for d in range(len(mix)):
                mix[d] = _half(mix[d] * old)
        else:
            share = expf(score - most)
        for d in range(len(mix)):
            mix[d] = _half(madd(values[k, d], share, mix[d], fused))
        total = total * old + share  # GCC has the two in different branches, so no FMA
    return total, most


@compiled
def _half(x):
    """Rounded to float16: to eleven bits, or to multiples of 2^-24; what is too large becomes infinity."""
    if abs(x) < SMALLEST:
        return (x + MAGIC) - MAGIC
    bits = np.int64(np.float32(x).view(np.int32))
    found = np.int32((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)
    return found if abs(found) < BEYOND else x * INFINITY


@compiled
def _tiles(q, keys, values, scale, first, form, y):
    """q float32 [m, size], row i of position ``first + i``; keys [size, cells], values [cells, size], y [m, size]."""
    row, fused = np.empty(TILE, np.float32), form.fused
    for i in range(len(q)):
        total, most = ZERO, NONE
        y[i] = 0
        for start in range(0, first + i + 1, TILE):
            count = min(TILE, first + i + 1 - start)
            row[:] = 0
            for d in range(q.shape[1]):
                for k in range(count):
                    row[k] = madd(keys[d, start + k], q[i, d], row[k], fused)
            highest = NONE
            for k in range(count):
                row[k] *= scale
                highest = max(highest, row[k])
            row[count:] = NONE
            if highest > most:
                old, most = expf(most - highest), highest
                y[i] *= old
                total *= old
            total = np.float32(np.float64(total) + grow(row, most, form))
            for k in range(count):
                for d in range(y.shape[1]):
                    y[i, d] = madd(values[start + k, d], row[k], y[i, d], fused)
        y[i] *= ONE / total
