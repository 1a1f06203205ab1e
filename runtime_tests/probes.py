"""Probes on which floating point has no freedom: activations whose exact answer every kernel must give.

A float sum depends on its order only where it rounds. Feed a matmul activations for which no partial
sum rounds, in any order, lane split, with or without FMA, and one differing bit is a defect, never
noise. Three families, all integers:

one-hot   a single non-zero input. Each output is one weight times the height: one rounding at most.
          All inputs in turn read back every stored weight through the runtime's own matmul.
block     32 integers inside one block: every scale, and the layout within the block.
spread    one or two inputs in each of a few blocks: sums across blocks.

Kernels that round activations to 8 bits divide each block by its largest magnitude / 127. A block
whose largest magnitude is exactly 127 is divided by 1, and its integers survive; so those kernels
get probes with a 127 in every active block, and float kernels the same ones.

The budget. For an output row let T be the sum over active blocks of |scale| * sum((|code| + |centre|)
* |x|), an upper bound on the magnitude of any partial sum of any written form, and let u be the last
set bit of the active scales. All partial sums are multiples of u; they fit float32's 24 bits when
T <= 2^24 u. `exact` computes this per output; only certified outputs are compared and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.protocols import Configuration, Form
from edgeqaf.qtensor import QTensor, decode

HEIGHT = 127  # the largest 8-bit activation: an activation block with this maximum keeps its integers
ROWS = 512  # probe rows fed at once
SPREAD = 64  # spread probes per matrix


@dataclass(frozen=True)
class Batch:
    """x [m, in] float32; expected [m, out] float32; certified [m, out]: where no rounding freedom is left."""

    kind: str
    x: Floats
    expected: Floats
    certified: NDArray[np.bool_]


def batches(q: QTensor, configuration: Configuration) -> Iterator[Batch]:
    """All probes of one matrix [out, in] for one configuration, at least two rows at a time."""
    yield from _one_hot(q, configuration)
    inputs = q.shape[1]
    rng = np.random.default_rng(inputs)
    for kind, probes in (("block", _block_probes(q, rng)), ("spread", _spread_probes(q, rng))):
        for start in range(0, len(probes), ROWS):
            x = probes[start : start + ROWS]
            rows = [exact(q, row, configuration.offset_form) for row in x]
            yield Batch(kind, x, np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows]))


def _one_hot(q: QTensor, configuration: Configuration) -> Iterator[Batch]:
    height = HEIGHT if configuration.int8_activations else 1
    out, inputs = q.shape
    answers = _one_hot_answers(q, height, configuration.offset_form)
    for start in range(0, inputs, ROWS):
        count = min(ROWS, inputs - start)
        x = np.zeros((count, inputs), np.float32)
        x[np.arange(count), start + np.arange(count)] = height
        yield Batch("one-hot", x, answers[start : start + count], np.ones((count, out), bool))


def _one_hot_answers(q: QTensor, height: int, form: Form) -> Floats:
    """[in, out]: height * weight with the roundings of ``form`` and no other."""
    if q.grid.zero is not Zero.OFFSET or form is Form.DECODED:
        weights = decode(q).astype(np.float64)
        return np.ascontiguousarray((weights * height).astype(np.float32).T)
    codes, scale, zero = _wide(q)
    if form is Form.FUSED:
        assert zero is not None
        products = (codes * scale + zero) * height
        return np.ascontiguousarray(products.reshape(q.shape).astype(np.float32).T)
    dots = ((codes - 8) * scale * height).astype(np.float32)
    sums = (_centred(q)[..., None].astype(np.float64) * height).astype(np.float32)
    return np.ascontiguousarray((dots + sums).reshape(q.shape).T)


def exact(q: QTensor, x: Floats, form: Form) -> tuple[Floats, NDArray[np.bool_]]:
    """The answer [out] of one probe x [in] in float64, rounded as ``form`` rounds, and where it is certain."""
    blocks = x.reshape(-1, q.grid.block).astype(np.float64)
    active = np.flatnonzero(blocks.any(-1))
    codes, scale, zero = _wide(q)
    codes, d, blocks = codes[:, active], scale[:, active, 0], blocks[active]
    size = np.abs(d) * ((np.abs(codes) + _largest_centre(q)) * np.abs(blocks)).sum(-1)
    certified = size.sum(-1) <= 2.0**24 * _last_bit(d).min(-1)
    certified |= np.count_nonzero(x) == 1  # a single product rounds once, in every order
    if zero is None:
        centre = q.zero[:, active, None] if q.grid.zero is Zero.CODE else q.grid.centre  # type: ignore[index]
        return (((codes - centre) * blocks).sum(-1) * d).sum(-1).astype(np.float32), certified
    if form is Form.DECODED or len(active) > 1:  # decoded offsets fill all 24 bits: no sum of them is exact
        certified = np.zeros_like(certified)
    sums = blocks.sum(-1)
    if form is Form.TWO_TERM:
        dots = (((codes - 8) * blocks).sum(-1) * d).sum(-1).astype(np.float32)
        offsets = (_centred(q)[:, active].astype(np.float64) * sums).sum(-1).astype(np.float32)
        return dots + offsets, certified
    zeros = zero[:, active, 0]
    certified &= (np.abs(zeros * sums).sum(-1) <= 2.0**24 * _last_bit(zeros).min(-1)) & bool(
        (np.abs(sums) <= 2048).all()
    )
    return (((codes * blocks).sum(-1) * d).sum(-1) + (zeros * sums).sum(-1)).astype(np.float32), certified


def _block_probes(q: QTensor, rng: np.random.Generator) -> Floats:
    """One probe a block: a 127, and as many other integers as the budget of a full 11-bit scale allows."""
    inputs, block = q.shape[1], q.grid.block
    count = inputs // block
    allowance = 2**13 // (max(abs(q.grid.lo), q.grid.hi) + _largest_centre(q)) - HEIGHT
    peak = max(allowance // (block - 1), 0)
    x = np.zeros((max(count, 2), inputs), np.float32)
    for b in range(count):
        values = rng.integers(-peak, peak + 1, block)
        values[rng.integers(block)] = HEIGHT * rng.choice((-1, 1))
        x[b, b * block : (b + 1) * block] = values
    return x


def _spread_probes(q: QTensor, rng: np.random.Generator) -> Floats:
    """Probes over two or three blocks, a single 127 in each."""
    inputs, block = q.shape[1], q.grid.block
    count = inputs // block
    x = np.zeros((SPREAD, inputs), np.float32)
    for row in x:
        for b in rng.choice(count, min(count, int(rng.integers(2, 4))), replace=False):
            row[b * block + rng.integers(block)] = HEIGHT * rng.choice((-1, 1))
    return x


def _wide(q: QTensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """codes [out, blocks, block], scale and zero [out, blocks, 1] in float64; zero only if it is an offset."""
    out, inputs = q.shape
    codes = q.codes.reshape(out, inputs // q.grid.block, q.grid.block).astype(np.float64)
    zero = q.zero[..., None].astype(np.float64) if q.grid.zero is Zero.OFFSET else None  # type: ignore[index]
    return codes, q.scale[..., None].astype(np.float64), zero


def _centred(q: QTensor) -> Floats:
    """float32 [out, blocks]: the offset as two-term kernels hold it, zero + 8 * scale."""
    centred: Floats = q.zero + np.float32(8) * q.scale
    return centred


def _largest_centre(q: QTensor) -> int:
    """The largest integer that a written form may subtract from a code of this grid."""
    return q.grid.hi if q.grid.zero is Zero.CODE else 8 if q.grid.zero is Zero.OFFSET else q.grid.centre


def _last_bit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value of the last set bit of float16 numbers; infinity for zero, which rounds nothing."""
    mantissa, exponent = np.frexp(values)
    integers = np.abs(mantissa * 2.0**11).astype(np.int64)
    last = (integers & -integers).astype(np.float64)
    return np.where(integers == 0, np.inf, np.ldexp(last, exponent - 11))
