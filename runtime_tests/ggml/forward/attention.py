"""Attention in three operations: scores, softmax, and the mix of values, as ggml does without flash attention.

Keys and values of all positions so far lie in a cache, in float32 or float16. A float16 cache meets queries, and
softmax's shares, that are rounded to float16 too. llama.cpp pads the cells it reads to a multiple of 256; what lies
beyond the sequence, or behind a position, is masked to minus infinity, has a share of zero, and changes no sum.

A matrix product of more than one row goes to llamafile's tiles, if its activations are contiguous. Queries of several
heads are not, so a float32 cache meets the dot product, row by row; for a float16 cache they are copied while they are
rounded, and meet the tiles.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

from collections.abc import Callable

import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats
from edgeqaf.qtensor import to_half
from runtime_tests.ggml.forward.arithmetic import Arithmetic
from runtime_tests.ggml.forward.exponential import Exponential, grow

NONE = np.float32(-np.inf)
CELLS = 64  # a multiple of every kernel's floats, which divides the 256 that llama.cpp pads cells to


class Cache:
    """Keys and values of one layer.

    keys:   float32 [kv heads, head size, capacity]. values: float32 [kv heads, capacity, head size].
    half:   whether what is put in is rounded to float16.
    """

    def __init__(self, heads: int, size: int, capacity: int, half: bool) -> None:
        self.half, self.used = half, 0
        capacity = -(-capacity // CELLS) * CELLS
        self.keys = np.zeros((heads, size, capacity), np.float32)
        self.values = np.zeros((heads, capacity, size), np.float32)

    def append(self, keys: Floats, values: Floats) -> None:
        """float32 [m, kv heads, head size] each."""
        end = self.used + len(keys)
        self.keys[:, :, self.used : end] = self.held(keys).transpose(1, 2, 0)
        self.values[:, self.used : end] = self.held(values).swapaxes(0, 1)
        self.used = end

    def held(self, x: Floats) -> Floats:
        """As the cache's type has it."""
        held: Floats = to_half(x) if self.half else x
        return held


def attend(
    arithmetic: Arithmetic, q: Floats, cache: Cache, scale: np.float32, see: Callable[[str, Floats], None]
) -> Floats:
    """q float32 [m, heads, head size], of the last m positions in the cache; float32 [m, heads * head size].

    see: is told of softmax's shares, float32 [heads, m, cells], and of the mix, [heads, m, head size].
    """
    rows, heads, size = q.shape
    used, group = cache.used, heads // len(cache.keys)
    cells = -(-used // CELLS) * CELLS
    products = arithmetic.half if cache.half else arithmetic.single
    scores = products.order(rows, size, 4, contiguous=cache.half or heads == 1)
    mixing = products.order(rows, cells, size, contiguous=True)
    shares = np.zeros((heads, rows, cells), np.float32)
    mixed = np.empty((heads, rows, size), np.float32)
    for head in range(heads):
        keys, values = cache.keys[head // group, :, :used], cache.values[head // group, :cells]
        found = scores.product(cache.held(np.ascontiguousarray(q[:, head])), np.ascontiguousarray(keys))
        softmax(found, scale, used - rows, arithmetic.exponential)
        shares[head, :, :used] = found
        mixed[head] = mixing.product(cache.held(shares[head]), values)
    see("kq_soft_max", shares)
    see("kqv", mixed)
    return np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(rows, -1)


def softmax(scores: Floats, scale: np.float32, first: int, form: Exponential) -> None:
    """Of ``scores * scale``: float32 [m, cells], row i of position ``first + i``, in place."""
    _softmax(scores, scale, first, form)


@compiled
def _softmax(scores, scale, first, form):
    row = np.empty(-(-scores.shape[1] // form.lanes) * form.lanes, np.float32)
    for i in range(len(scores)):
        seen = first + i + 1
        row[:] = NONE
        most = NONE
        for k in range(seen):
            row[k] = scores[i, k] * scale
            most = max(most, row[k])
        total = grow(row[: -(-seen // form.lanes) * form.lanes], most, form)
        factor = np.float32(np.float64(1) / total)
        for k in range(seen):
            scores[i, k] = row[k] * factor
        scores[i, seen:] = 0
