"""Probes on which floating point has no freedom: activations whose exact answer every kernel must give.

A float sum depends on its order only where it rounds. Feed a matmul activations for which no partial
sum rounds, in any order, lane split, with or without FMA, and one differing bit is a defect, never
noise. Three families, all integers:

one-hot   a single non-zero input. Each output is one weight times the height: nothing to reorder.
          All inputs in turn read back every stored weight through the runtime's own matmul.
block     32 integers inside one block: every scale, and the layout within the block.
spread    one input in each of two or three blocks: sums across blocks.

Kernels that round activations to 8 bits divide each block by its largest magnitude / 127. A block
whose largest magnitude is exactly 127 is divided by 1, and its integers survive; so every active
block has a 127. (To 16 bits, the exact profile divides by 127 * 256: it keeps them as well.)

Kernels write one product in different forms (`edgeqaf.protocols.Form`), which round differently
where 24 bits do not suffice. `written_form` states a form as terms; the answer is the float32 sum of
the terms, each rounded once from its exact value.

The budget. For an output row let T be the sum over active blocks of |scale| * sum(|integer| * |x|),
an upper bound on the magnitude of any partial sum, and u the last set bit of the active scales. All
partial sums are multiples of u; they fit float32's 24 bits when T <= 2^24 u. `exact` decides this
per output; only certified outputs are compared and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.protocols import Configuration, Form
from edgeqaf.qtensor import QTensor, Supers, decode

HEIGHT = 127  # the largest 8-bit activation: an activation block with this maximum keeps its integers
ROWS = 512  # probe rows fed at once
FEWEST = 8  # rows from which llama.cpp takes its kernels for prompts; fewer meet others, in other written forms
SPREAD = 64  # spread probes per matrix
LARGEST_SUM = 2048  # a block's activation sum that float16, where some kernels keep it, holds exactly

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """x [m, in] float32; expected [m, out] float32; certified [m, out]: where no rounding freedom is left."""

    kind: str
    x: Floats
    expected: Floats
    certified: NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """integers [out, blocks, block] times coefficient [out, blocks], in float64.

    per_block: the integers are equal within a block, so the kernel multiplies the block's activation sum.
    summable:  the integers are integers; decoded float weights are not, and no sum of them is certain.
    """

    integers: Doubles
    coefficient: Doubles
    per_block: bool = False
    summable: bool = True


Term = tuple[Part, ...]  # parts are added before the one rounding


def batches(q: QTensor, configuration: Configuration) -> Iterator[Batch]:
    """All probes of one matrix [out, in] for one configuration, at least `FEWEST` rows at a time."""
    terms = written_form(q, configuration)
    inputs = q.shape[1]
    rng = np.random.default_rng(inputs)
    height = HEIGHT if configuration.int8_activations or configuration.exact_sums else 1
    answers = _one_hot_answers(q, terms, height)
    for start in range(0, inputs, ROWS):
        count = min(ROWS, inputs - start)
        x = np.zeros((count, inputs), np.float32)
        x[np.arange(count), start + np.arange(count)] = height
        expected = answers[start : start + count]
        yield Batch("one-hot", x, expected, np.ones(expected.shape, bool))
    block = terms[0][0].integers.shape[-1]
    families = {"block": _block_probes(inputs, block, terms, rng), "spread": _spread_probes(inputs, block, rng)}
    for kind, probes in families.items():
        for start in range(0, len(probes), ROWS):
            x = probes[start : start + ROWS]
            rows = [exact(terms, row, mixed=len(terms) > 1 and q.supers is not None) for row in x]
            certified = np.stack([r[1] for r in rows]) | configuration.exact_sums
            yield Batch(kind, x, np.stack([r[0] for r in rows]), certified)


def written_form(q: QTensor, configuration: Configuration) -> list[Term]:
    """The terms in which this configuration's kernels compute a product with ``q``."""
    out, inputs = q.shape
    codes = q.codes.reshape(out, inputs // q.grid.block, q.grid.block).astype(np.float64)
    scale = q.scale.astype(np.float64)
    if q.supers is not None and configuration.offset_form is Form.FUSED:
        return _two_level_form(q, q.supers, codes)
    if q.grid.zero is Zero.OFFSET:
        assert q.zero is not None
        return _offset_form(q, codes, scale, configuration)
    zero = np.float64(q.grid.centre) if q.zero is None else q.zero[..., None].astype(np.float64)
    if not configuration.split_zero:
        return [(Part(codes - zero, scale),)]
    unsigned = codes - q.grid.lo
    zeros = np.broadcast_to(q.grid.lo - zero, codes.shape)
    return [(Part(unsigned, scale),), (Part(zeros, scale, per_block=True),)]


def _offset_form(q: QTensor, codes: Doubles, scale: Doubles, configuration: Configuration) -> list[Term]:
    form = configuration.offset_form
    if form is Form.DECODED:
        weights = decode(q).reshape(codes.shape).astype(np.float64)
        return [(Part(weights, np.ones_like(scale), summable=False),)]
    ones = np.ones_like(codes)
    if form is Form.FUSED:
        return [(Part(codes, scale), Part(ones, q.zero.astype(np.float64), per_block=True))]  # type: ignore[union-attr]
    middle = (q.grid.lo + q.grid.hi + 1) // 2
    centred = q.zero + np.float32(middle) * q.scale  # rounded to float32, as the file stores it
    offset = (Part(ones, centred.astype(np.float64), per_block=True),)
    if not configuration.split_zero:
        return [(Part(codes - middle, scale),), offset]
    middles = np.broadcast_to(np.float64(q.grid.lo - middle), codes.shape)
    return [(Part(codes - q.grid.lo, scale),), (Part(middles, scale, per_block=True),), offset]


def _two_level_form(q: QTensor, supers: Supers, codes: Doubles) -> list[Term]:
    """``d * integer dot - dmin * integer sum`` over super-blocks, block scales and minima among the integers."""
    shape = (*supers.d.shape, -1)
    scales = supers.scales[..., None].astype(np.float64)
    terms: list[Term] = [(Part(((codes - q.grid.centre) * scales).reshape(shape), supers.d.astype(np.float64)),)]
    if supers.dmin is not None:
        mins = np.broadcast_to(supers.mins[..., None].astype(np.float64), codes.shape)  # type: ignore[index]
        terms.append((Part(mins.reshape(shape), -supers.dmin.astype(np.float64)),))
    return terms


def _one_hot_answers(q: QTensor, terms: list[Term], height: int) -> Floats:
    """[in, out]: height * weight in the written form."""
    rounded = [
        sum(part.integers * part.coefficient[..., None] * height for part in term).astype(np.float32)  # type: ignore[union-attr]
        for term in terms
    ]
    total: Floats = sum(rounded[1:], rounded[0])
    return np.ascontiguousarray(total.reshape(q.shape).T)


def exact(terms: list[Term], x: Floats, mixed: bool = False) -> tuple[Floats, NDArray[np.bool_]]:
    """The answer [out] of one probe x [in] in the written form, and where it is certain.

    mixed: kernels add the terms of several blocks to one sum in any order, so nothing at all may round.
    """
    block = terms[0][0].integers.shape[-1]
    blocks = x.reshape(-1, block).astype(np.float64)
    active = np.flatnonzero(blocks.any(-1))
    blocks = blocks[active]
    answers, certain = [], []
    if mixed:
        terms = [tuple(part for term in terms for part in term)]
    for term in terms:
        pieces = [(p.integers[:, active] * blocks, p.coefficient[:, active], p) for p in term]
        answers.append(sum((i.sum(-1) * c).sum(-1) for i, c, _ in pieces).astype(np.float32))
        certain.append(_certified([(np.abs(i).sum(-1) * np.abs(c), c, p) for i, c, p in pieces], blocks, mixed))
    total: Floats = sum(answers[1:], answers[0])
    alone = np.count_nonzero(x) == 1 and not mixed  # a single product rounds once, in every order
    return total, np.logical_and.reduce(certain) | alone


def _certified(pieces: list[tuple[Doubles, Doubles, Part]], blocks: Doubles, mixed: bool) -> NDArray[np.bool_]:
    """Where one term [out] cannot round but at its end. pieces: (size [out, active], coefficient, part)."""
    sizes = [size.sum(-1) for size, _, _ in pieces]
    last = [_last_bit(coefficient).min(-1, initial=np.inf) for _, coefficient, _ in pieces]
    together: NDArray[np.bool_] = sum(sizes) <= 2.0**24 * np.minimum.reduce(last)
    if (
        not mixed and len(blocks) == 1 and np.abs(blocks.sum()) <= LARGEST_SUM
    ):  # then the parts meet in one last addition
        fits = [
            part.per_block | (size <= 2.0**24 * bit)
            for size, bit, (_, _, part) in zip(sizes, last, pieces, strict=True)
        ]
        together = together | np.logical_and.reduce(fits)
    return together & all(part.summable for _, _, part in pieces)


def _block_probes(inputs: int, block: int, terms: list[Term], rng: np.random.Generator) -> Floats:
    """One probe a block: a 127, and as many other integers as the budget of a full 11-bit scale allows."""
    count = inputs // block
    sizes = [float(np.abs(part.integers).max()) for term in terms for part in term if part.summable]
    largest = max(sizes, default=0.0)
    peak = min(max(int(2**13 / largest - HEIGHT) // (block - 1), 0), HEIGHT) if largest else 0
    x = np.zeros((max(count, FEWEST), inputs), np.float32)
    for b in range(count):
        values = rng.integers(-peak, peak + 1, block)
        values[rng.integers(block)] = HEIGHT * rng.choice((-1, 1))
        x[b, b * block : (b + 1) * block] = values
    return x


def _spread_probes(inputs: int, block: int, rng: np.random.Generator) -> Floats:
    """Probes over two or three blocks, a single 127 in each."""
    count = inputs // block
    x = np.zeros((SPREAD, inputs), np.float32)
    for row in x:
        for b in rng.choice(count, min(count, int(rng.integers(2, 4))), replace=False):
            row[b * block + rng.integers(block)] = HEIGHT * rng.choice((-1, 1))
    return x


def _last_bit(values: Doubles) -> Doubles:
    """The value of the last set bit of float32 numbers; infinity for zero, which rounds nothing."""
    mantissa, exponent = np.frexp(values)
    integers = np.abs(mantissa * 2.0**24).astype(np.int64)
    last = (integers & -integers).astype(np.float64)
    return np.where(integers == 0, np.inf, np.ldexp(last, exponent - 24))
