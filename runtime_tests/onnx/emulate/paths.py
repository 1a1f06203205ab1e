"""Which order of operations is which kernel's: the paths known here.

Which outputs go through which loop is a matter of the whole matrix: of how MLAS cuts it up for threads, and of outputs
left over where a kernel takes several at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor
from runtime_tests.loops import TILE
from runtime_tests.onnx.emulate import decoded, offsets, rounded
from runtime_tests.onnx.emulate.folds import Fold
from runtime_tests.onnx.emulate.operands import Matrix, untiled
from runtime_tests.onnx.emulate.rounded import EIGHT, PAIR, SIXTEEN, blocks

Loop = Callable[..., None]
TOGETHER = 16  # outputs that MLAS never parts
WORTH = 64 * 1024  # products that are worth a thread
PACKED = 256  # inputs in a panel of constant weights, which are packed while loading
ONE = 1 << 30  # a panel that holds any row


@dataclass(frozen=True)
class Case:
    """What a kernel is chosen by: rows of activations, [out, in] of the matrix, threads."""

    rows: int
    out: int
    inputs: int
    threads: int


Strips = Callable[[Case], Iterator[tuple[int, int, Loop]]]  # outputs first:last, and their loop


@dataclass(frozen=True)
class Path:
    """One known arithmetic.

    name:    how reports name it: its order, and whose it is.
    strips:  which loops.
    int8:    whether activations are rounded to 8 bits per block.
    centred: whether integers are codes less zero points.
    inverse: whether activations are rounded as on ARM (`rounded.rounded`), where integers are codes less 8.
    second:  the loops of the second term of a grid with a float zero; None for other grids.
    sums:    of activations, which that term multiplies.
    """

    name: str
    strips: Strips
    int8: bool = False
    centred: bool = False
    inverse: bool = False
    second: Strips | None = None
    sums: Callable[[Floats, int], Floats] = offsets.sums

    def product(self, matrix: Matrix, x: Floats, case: Case) -> Floats:
        """x float32 [m, in] by ``matrix``, to the bits of this kernel: float32 [m, its outputs]."""
        y = np.concatenate([self._strip(part, x, loop) for part, loop in _cut(matrix, self.strips, case)], 1)
        if self.second is None:
            return y
        sums = self.sums(x, matrix.q.grid.block)
        cut = _cut(matrix, self.second, replace(case, inputs=sums.shape[1]))
        found: Floats = y + np.concatenate([_run(loop, len(x), part, (sums,), (part.terms,)) for part, loop in cut], 1)
        return found

    def _strip(self, matrix: Matrix, x: Floats, loop: Loop) -> Floats:
        if not self.int8:
            return _run(loop, len(x), matrix, (x,), (matrix.weights,))
        seen = rounded.rounded(x, self.inverse)
        codes, points = (matrix.centred, matrix.zeros) if self.centred else (matrix.codes, matrix.points)
        if self.inverse:
            codes, points = matrix.halved, matrix.halved_points
        return _run(loop, len(x), matrix, (seen.codes, seen.scale, seen.sums), (codes, matrix.scale, points))


def _cut(matrix: Matrix, strips: Strips, case: Case) -> Iterator[tuple[Matrix, Loop]]:
    for first, last, loop in strips(case):
        part = matrix.strip(first, last)
        if len(part.at):
            yield part, loop


def _run(loop: Loop, rows: int, matrix: Matrix, x: tuple[Any, ...], w: tuple[Any, ...]) -> Floats:
    y = np.empty((len(w[0]), rows, TILE), np.float32)
    for tile in range(len(y)):
        loop(*x, *(part[tile] for part in w), y[tile])
    return untiled(y, len(matrix.at))


def _all(loop: Loop) -> Strips:
    def strips(case: Case) -> Iterator[tuple[int, int, Loop]]:
        yield 0, case.out, loop

    return strips


def _groups(*loops: tuple[int, Loop]) -> Strips:
    """(size, loop) of groups of outputs that a kernel takes at once, falling; each takes as many as it can."""

    def strips(case: Case) -> Iterator[tuple[int, int, Loop]]:
        first = 0
        for size, loop in loops:
            last = first + (case.out - first) // size * size
            yield first, last, loop
            first = last

    return strips


def _panels(fused: bool) -> Strips:
    """Panels of 128 inputs, wider ones where a thread has few outputs (MlasSgemmOperation)."""

    def strips(case: Case) -> Iterator[tuple[int, int, Loop]]:
        for first, last in _shares(case):
            width, panel = 128, 128
            if last - first < case.inputs:
                while width > TOGETHER and width // 2 >= last - first:
                    width, panel = width // 2, panel * 2
            yield first, last, decoded.chain(panel, fused)

    return strips


def _shares(case: Case) -> Iterator[tuple[int, int]]:
    """The outputs of each thread, where MLAS shares outputs out and not rows."""
    groups = -(-case.out // TOGETHER)
    threads = min(case.threads, case.rows * case.out * case.inputs // WORTH + 1, groups)
    if case.out <= case.rows:
        threads = 1
    first = 0
    for thread in range(threads):
        last = first + groups // threads + (thread < groups % threads)
        yield first * TOGETHER, min(last * TOGETHER, case.out)
        first = last


def _floats() -> Iterator[Path]:
    """Kernels that decode weights."""
    yield Path("one chain with FMA", _all(decoded.chain(ONE, True)))
    yield Path("one chain without FMA", _all(decoded.chain(ONE, False)))
    yield Path("a chain with FMA for each panel of inputs", _panels(True))
    yield Path("a chain without FMA for each panel of inputs", _panels(False))
    yield Path("four products at a time (AVX and later, one row)", _all(decoded.fours()))
    for name, groups in {
        "sixteen lanes with FMA (AVX-512, one row)": ((4, 16, True, Fold.QUADS), (1, 16, True, Fold.HALVES)),
        "eight lanes with FMA (AVX2, one row)": ((4, 8, True, Fold.QUADS), (1, 8, True, Fold.HALF_PAIRS)),
        "eight lanes (AVX and later, one row)": (
            (4, 8, False, Fold.QUADS), (2, 8, False, Fold.EVENS), (1, 8, False, Fold.PAIRS),
        ),
        "four lanes with FMA (ARM, one row)": ((1, 4, True, Fold.PAIRS),),
    }.items():  # fmt: skip
        yield Path(name, _groups(*((size, decoded.lanes(*loop)) for size, *loop in groups)))


def _integers() -> Iterator[Path]:
    """Kernels that round activations."""
    for name, lanes, centred in (
        ("four blocks in sixteen lanes (AVX-512)", SIXTEEN, False),
        ("two blocks in eight lanes (AVX2)", PAIR, False),
        ("a block in eight lanes (AVX2, one row)", EIGHT, True),
    ):
        loops = ((size, blocks(lanes, tree)) for size, tree in ((4, Fold.QUADS), (1, Fold.HALVES)))
        yield Path(f"8-bit activations, {name}", _groups(*loops), True, centred)
    yield Path("8-bit activations, four blocks of 2 bits", _all(rounded.quartets()), True)
    for words, unsigned in (("ARM with int8 matrix products", False), ("ARM", True)):
        name = f"8-bit activations, a block at a time, the rest apart ({words}, codes of 8 bits)"
        yield Path(name, _groups(*((size, rounded.apart(unsigned, lanes)) for size, lanes in ((4, 1), (1, 4)))), True)
    yield Path("8-bit activations, a block at a time (ARM)", _all(rounded.one_lane()), True, inverse=True)


def _seconds() -> Iterator[tuple[str, Strips]]:
    yield "one chain with FMA", _all(decoded.chain(ONE, True))
    yield "one chain without FMA", _all(decoded.chain(ONE, False))
    yield "four products at a time", _all(decoded.fours())
    for fused in (True, False):
        words = f"with{'' if fused else 'out'} FMA"
        yield f"panels {words}", _panels(fused)
        yield f"panels of {PACKED} {words}", _all(decoded.chain(PACKED, fused))


PRODUCTS = (*_floats(), *_integers())
WITH_OFFSETS = tuple(
    replace(path, name=f"{path.name}; offsets{where}: {name}", second=second, sums=sums)
    for where, sums in (("", offsets.sums), (" (ARM)", offsets.sums_arm))
    for path in PRODUCTS
    for name, second in _seconds()
)


def paths(q: QTensor) -> tuple[Path, ...]:
    """Every path that a matrix on this grid may take."""
    return WITH_OFFSETS if q.grid.zero is Zero.OFFSET else PRODUCTS
