"""Probes on which floating point has no freedom: activations whose exact answer every kernel must give.

A float sum depends on its order only where it rounds. Feed a matmul activations for which no partial
sum rounds, in any order, lane split, with or without FMA, and one differing bit is a defect, never
noise. Three families, all integers:

digits    a few inputs of one block, their heights so far apart that the answer spells out their weights, like
          the digits of a number: 127 and 1, say, for codes of 4 bits. Where a grid or kernel leaves no room for
          that, one input alone. All inputs in turn read back every stored weight through the runtime's own matmul.
block     integers for all inputs of one block: every scale, and the layout within the block.
spread    one input in each of two or three blocks: sums across blocks.

Kernels that round activations to 8 bits divide each block by its largest magnitude / 127. A block
whose largest magnitude is exactly 127 is divided by 1, and its integers survive; so every active
block has a 127. (To 16 bits, the exact profile divides by 127 * 256: it keeps them as well.)

Kernels write one product in different forms, which round differently where 24 bits do not suffice
(`runtime_tests.forms`); the answer is the float32 sum of a form's terms, each rounded once from its exact value.

The budget. For an output row let T be the sum over active blocks of |scale| * sum(|integer| * |x|),
an upper bound on the magnitude of any partial sum, and u the last set bit of the active scales. All
partial sums are multiples of u; they fit float32's 24 bits when T <= 2^24 u. `exact` decides this
per output; only certified outputs are compared and counted. Digits are certain by construction: a scale
has 11 bits, and their integers sum up to no more than 13.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.grid import Grid, Zero
from edgeqaf.protocols import Configuration, Form
from edgeqaf.qtensor import QTensor
from edgeqaf.runs import cuts
from runtime_tests.forms import Columns, Doubles, Part, Term, last_bit, unit, written_form

HEIGHT = 127  # the largest 8-bit activation: an activation block with this maximum keeps its integers
ROWS = 4096  # probe rows fed at once
ANSWERS = 2**25  # outputs asked for at once, at most
FEWEST = 8  # rows from which llama.cpp takes its kernels for prompts; fewer meet others, in other written forms
SPREAD = 64  # spread probes per matrix
LARGEST_SUM = 2048  # a block's activation sum that float16, where some kernels keep it, holds exactly
BUDGET = 2**13  # what integers may add up to beside a scale of 11 bits
TILE = 2**18  # weights whose answers are made at once: what a cache holds


@dataclass(frozen=True)
class Batch:
    """x [m, in] float32; expected [m, out] float32; certified [m, out]: where no rounding freedom is left.

    inputs: of digits, int64 [m, digits]: whose weights a row's answers spell out, the highest first; -1 for none.
    """

    kind: str
    x: Floats
    expected: Floats
    certified: NDArray[np.bool_]
    inputs: Columns | None = None


def batches(q: QTensor, configuration: Configuration) -> Iterator[Batch]:
    """All probes of one matrix [out, in] for one configuration, at least `FEWEST` rows at a time."""
    yield from _digits(q, configuration)
    rng = np.random.default_rng(q.shape[1])
    size = unit(q, configuration)
    most = max(FEWEST, min(ROWS, ANSWERS // q.shape[0]))
    families = {"block": _block_probes(q, configuration, rng), "spread": _spread_probes(q.shape[1], size, rng)}
    for kind, (columns, values) in families.items():
        for start in range(0, len(columns), most):
            yield _asked(kind, q, configuration, columns[start : start + most], values[start : start + most])


def _asked(kind: str, q: QTensor, configuration: Configuration, columns: Columns, values: Doubles) -> Batch:
    """Some probes of a family, and rows of zeros up to `FEWEST`."""
    many = len(columns)
    x, answers = (np.zeros((max(many, FEWEST), width), np.float32) for width in q.shape[::-1])
    np.add.at(x, (np.arange(many)[:, None, None], columns), values)
    certain = np.ones(answers.shape, bool)
    for first, last in cuts((len(q.codes), columns.size), most=TILE):
        found, sure = exact(q.rows(first, last), configuration, columns, values)
        answers[:many, first:last], certain[:many, first:last] = found.T, sure.T
    return Batch(kind, x, answers, certain | configuration.exact_sums)


def heights(grid: Grid, configuration: Configuration) -> tuple[int, ...]:
    """Of the inputs that one probe reads at once, the highest first; the highest alone where there is no room.

    Any two tuples of weights of a block have different sums of heights * (code - zero): a height exceeds what all
    lower ones can differ by. A zero point may be wrong as well as a code, so it counts twice.
    """
    rounded = configuration.int8_activations or configuration.exact_sums
    several = grid.zero is Zero.OFFSET or grid.levels is not None  # numbers that round together
    if several or configuration.offset_form is Form.HALF:
        return (HEIGHT if rounded else 1,)
    largest = grid.hi - grid.lo  # integer in any form, whatever the zero
    spread = 2 * largest if grid.zero is Zero.CODE else largest
    found = [1]
    while (sum(found) + (spread + 1) ** len(found)) * largest <= BUDGET:
        found.append((spread + 1) ** len(found))
    if rounded:
        found = [height for i, height in enumerate(found) if spread * sum(found[: i + 1]) < HEIGHT] + [HEIGHT]
    return tuple(reversed(found))


def _digits(q: QTensor, configuration: Configuration) -> Iterator[Batch]:
    """Every weight once."""
    out, size = q.shape[0], unit(q, configuration)
    high = np.array(heights(q.grid, configuration), np.float64)
    each = -(-size // len(high))  # probes of a block: the k-th reads inputs k, k + each, k + 2 each, ...
    members = np.arange(each)[:, None] + each * np.arange(len(high))
    blocks = max(1, min(ROWS, ANSWERS // out) // each)
    for start in range(0, q.shape[1] // size, blocks):
        starts = size * np.arange(start, min(start + blocks, q.shape[1] // size))
        inputs = np.where(members < size, starts[:, None, None] + members, -1).reshape(-1, len(high))
        x = np.zeros((max(len(inputs), FEWEST), q.shape[1]), np.float32)
        for digit, height in enumerate(high):
            read = inputs[:, digit] >= 0
            x[np.flatnonzero(read), inputs[read, digit]] = height
        expected = np.zeros((len(x), out), np.float32)
        for first, last in cuts((out, len(starts) * size), most=TILE):
            terms = written_form(q.rows(first, last), configuration, starts[:, None] + np.arange(size))
            expected[: len(inputs), first:last] = _spelled(terms, high, each).T
        yield Batch("digits", x, expected, np.ones(expected.shape, bool), inputs)


def culprit(batch: Batch, q: QTensor, found: Floats, row: int, out: int) -> tuple[int, int]:
    """[out, in] of the first weight that an answer of digits spells wrongly; the highest where it spells none."""
    assert batch.inputs is not None
    read = batch.inputs[row][batch.inputs[row] >= 0]
    high = [round(float(height)) for height in batch.x[row, read]]
    scale = float(q.scale[out, read[0] // q.grid.block])
    answers = [float(answer[row, out]) / (scale or 1.0) for answer in (batch.expected, found)]
    if len(read) == 1 or not np.isfinite(answers).all():
        return out, int(read[0])
    lowest = q.grid.lo - (q.grid.hi if q.grid.zero is Zero.CODE else q.grid.centre)
    right, wrong = (round(answer) - lowest * sum(high) for answer in answers)
    for column, height in zip(read, high, strict=True):
        if right // height != wrong // height:
            return out, int(column)
        right, wrong = right % height, wrong % height
    return out, int(read[0])


def _spelled(terms: list[Term], high: Doubles, each: int) -> Floats:
    """[out, blocks * each]: the answers of the probes of whole blocks in the written form."""

    def summed(part: Part) -> Doubles:
        weighted = np.zeros((*part.integers.shape[:2], each))
        for digit, height in enumerate(high):
            those = part.integers[..., digit * each : (digit + 1) * each]
            weighted[..., : those.shape[-1]] += those * height
        return (weighted * part.coefficient[..., None]).reshape(len(weighted), -1)

    return _rounded([[summed(part) for part in term] for term in terms])


def _rounded(terms: Sequence[Sequence[Doubles]]) -> Floats:
    """The float32 sum of terms, each the exact sum of its parts, rounded once."""
    rounded = [np.sum(parts, axis=0).astype(np.float32) for parts in terms]
    total: Floats = sum(rounded[1:], rounded[0])
    return total


def exact(
    q: QTensor, configuration: Configuration, columns: Columns, values: Doubles
) -> tuple[Floats, NDArray[np.bool_]]:
    """The answers [out, probes] in the written form, and where they are certain.

    columns: [probes, blocks, n], the inputs that a probe feeds, those of one row of one block; values: what with.
    """
    terms = written_form(q, configuration, columns.reshape(-1, columns.shape[2]))
    mixed = len(terms) > 1 and q.supers is not None  # kernels add terms of several blocks to one sum in any order
    if mixed:  # so nothing at all may round
        terms = [tuple(part for term in terms for part in term)]
    answers, certain = [], []
    for term in terms:
        answers.append([_of_probes(_weighed(p.integers, values) * p.coefficient, values).sum(-1) for p in term])
        certain.append(_certified(term, values, mixed))
    single = all(part.bits == 24 for term in terms for part in term)  # to float32, as the answer is
    alone = (np.count_nonzero(values, (1, 2)) == 1) & (not mixed and single)  # one product rounds once, in every order
    return _rounded(answers), np.logical_and.reduce(certain) | alone


def _weighed(integers: Doubles, values: Doubles) -> Doubles:
    """[out, probes * blocks]: the sums of integers [out, probes * blocks, n] times values [probes, blocks, n]."""
    sums: Doubles = np.einsum("okn,kn->ok", integers, values.reshape(-1, values.shape[2]))
    return sums


def _of_probes(found: Doubles, values: Doubles) -> Doubles:
    """[out, probes * blocks] -> [out, probes, blocks]."""
    return found.reshape(len(found), *values.shape[:2])


def _certified(term: Term, values: Doubles, mixed: bool) -> NDArray[np.bool_]:
    """Where one term [out, probes] cannot round but at its end."""
    size = np.abs(values)
    reach = [_of_probes(_weighed(np.abs(p.integers), size) * np.abs(p.coefficient), values).sum(-1) for p in term]
    last = [_of_probes(last_bit(part.coefficient), values).min(-1) for part in term]
    room = 2.0 ** min(part.bits for part in term)
    together: NDArray[np.bool_] = np.sum(reach, axis=0) <= room * np.minimum.reduce(last)
    if not mixed and values.shape[1] == 1:  # then the parts meet in one last addition
        fits = [part.per_block | (r <= room * bit) for r, bit, part in zip(reach, last, term, strict=True)]
        together |= np.logical_and.reduce(fits) & (np.abs(values.sum((1, 2))) <= LARGEST_SUM)
    return together & all(part.summable for part in term)


def _block_probes(q: QTensor, configuration: Configuration, rng: np.random.Generator) -> tuple[Columns, Doubles]:
    """One probe a block: a 127, and as many other integers as the budget of a full 11-bit scale allows."""
    inputs, block = q.shape[1], unit(q, configuration)
    largest = _largest(q, configuration)
    peak = min(max(int(BUDGET / largest - HEIGHT) // (block - 1), 0), HEIGHT) if largest else 0
    values = rng.integers(-peak, peak + 1, (inputs // block, block)).astype(np.float64)
    values[np.arange(len(values)), rng.integers(block, size=len(values))] = HEIGHT * rng.choice((-1, 1), len(values))
    return np.arange(inputs).reshape(-1, 1, block), values[:, None]


def _largest(q: QTensor, configuration: Configuration) -> float:
    """The largest integer of the written form, in some rows: what it is used for is decided for each row later."""
    columns = np.arange(q.shape[1]).reshape(-1, unit(q, configuration))
    some = q.rows(*next(cuts(q.shape, most=TILE)))
    terms = written_form(some, configuration, columns)
    return max((float(np.abs(p.integers).max()) for term in terms for p in term if p.summable), default=0.0)


def _spread_probes(inputs: int, block: int, rng: np.random.Generator) -> tuple[Columns, Doubles]:
    """Probes over two or three blocks, a single 127 in each; of two, the first stands for a third, fed nothing."""
    count = inputs // block
    columns, values = np.zeros((SPREAD, 3, 1), np.int64), np.zeros((SPREAD, 3, 1))
    for probe, fed in zip(columns, values, strict=True):
        several = rng.choice(count, min(count, int(rng.integers(2, 4))), replace=False)
        probe[:] = block * several[0]
        probe[: len(several), 0] = block * several + rng.integers(block, size=len(several))
        fed[: len(several), 0] = HEIGHT * rng.choice((-1, 1), len(several))
    return columns, values
