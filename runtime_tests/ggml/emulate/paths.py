"""Which arithmetic is whose: for each type of ggml, the kernels known here.

A path is a rule of rounding activations and an order of operations. Many kernels share one: integers are exact, so
AVX2, AVX-512 and VNNI differ in nothing, and a dot product and llamafile's matrix product may add alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.qtensor import QTensor
from runtime_tests.ggml.emulate import chunks, lanes, pairs, super_blocks, super_lanes
from runtime_tests.ggml.emulate.activations import Rounded, Rule, rounded
from runtime_tests.ggml.emulate.lanes import Offsets
from runtime_tests.ggml.emulate.operands import Operand, operand
from runtime_tests.ggml.emulate.pairs import Tree
from runtime_tests.ggml.emulate.super_blocks import Minima
from runtime_tests.loops import TILE

Loop = Callable[..., None]
GROUP = 4  # rows that a repacked matrix kernel takes at once; what is left over goes through the vector kernel


@dataclass(frozen=True)
class Path:
    """One known arithmetic.

    name: how reports name it: its order, and whose it is.
    rule: of rounding activations.
    loop: of all rows, or of whole groups of four.
    rest: of the rows left over, if they have a loop of their own.
    twos: of what is taken in twos (`chunks`), if that has a loop of its own.
    """

    name: str
    rule: Rule
    loop: Loop
    rest: Loop | None = None
    twos: Loop | None = None

    def product(self, q: QTensor, x: Floats) -> Floats:
        """x float32 [m, in] by ``q`` [out, in], to the bits of this kernel: float32 [m, out]."""
        return self.apply(operand(q), len(q.codes), x)

    def apply(self, matrix: Operand, out: int, x: Floats) -> Floats:
        """`product` by a matrix with ``out`` outputs that is laid out already."""
        if self.twos is not None:
            return self._in_twos(self.twos, matrix, out, x)
        cut = len(x) if self.rest is None else len(x) // GROUP * GROUP
        parts = [(loop, rows) for loop, rows in ((self.loop, x[:cut]), (self.rest, x[cut:])) if loop and len(rows)]
        return np.concatenate([_product(loop, matrix, rounded(rows, self.rule), out) for loop, rows in parts])

    def _in_twos(self, twos: Loop, matrix: Operand, out: int, x: Floats) -> Floats:
        where = chunks.in_twos(len(x), out)
        both = (twos, True), (self.loop, False)
        made = {which: _product(loop, matrix, rounded(x, self.rule), out) for loop, which in both if which in where}
        return made[True] if where.all() else np.where(where, made.get(True, made[False]), made[False])


def _product(loop: Loop, w: Operand, x: Rounded, out: int) -> Floats:
    y = np.empty((len(w.codes), len(x.codes), TILE), np.float32)
    sums = x.sixteens if w.levels else x.sums
    for t, tile in enumerate(y):
        levels = (level[t] for level in w.levels)
        loop(x.codes, x.scale, sums, w.codes[t], *levels, w.scale[t], w.zero[t], tile)
    return np.ascontiguousarray(y.swapaxes(0, 1).reshape(len(x.codes), -1)[:, :out])


def _one_level(left: bool) -> tuple[Path, ...]:
    """Q4_0 and Q8_0. left: plain C's order of a product's factors."""
    even, away, neon = Rule.HALF_EVEN, Rule.HALF_AWAY, Rule.NEON
    return (
        Path("eight lanes with FMA (AVX2 and later)", even, lanes.kernel(8, fused=True)),
        Path("a block at a time with FMA (repacked)", even, lanes.kernel(1, fused=True)),
        Path("pairs of blocks in eight lanes with FMA (AVX with FMA)", even, pairs.kernel(8, True, left)),
        Path("pairs of blocks in eight lanes (AVX)", even, pairs.kernel(8, False, left)),
        Path("eight lanes (AVX)", even, lanes.kernel(8, fused=False)),
        Path("pairs of blocks in sixteen lanes (SSE)", away, pairs.kernel(16, False, left, Tree.NEIGHBOURS)),
        Path("a block at a time (plain C)", away, lanes.kernel(1, fused=False, left=left)),
        Path("a block at a time with FMA (ARM, repacked)", neon, lanes.kernel(1, fused=True)),
        Path("four lanes with FMA (NEON)", neon, pairs.kernel(4, True, left, Tree.NEIGHBOURS, alternate=False)),
        *_arm(left),
    )


def _arm(left: bool) -> Iterator[Path]:
    """Vector kernels of ARM, each by itself and beside the one for twos."""
    pair, blocks, neighbours = partial(pairs.kernel, fused=True, left=left), Tree.BLOCKS, Tree.NEIGHBOURS
    kernels = {
        "pairs of blocks in eight lanes with FMA (NEON": pair(8, tree=neighbours),
        "pairs of blocks in eight lanes with FMA, added first (SVE of 128 bits": pair(8, tree=blocks),
        "pairs of blocks in sixteen lanes with FMA, added first (SVE": pair(16, tree=blocks),
        "pairs of blocks in sixteen lanes with FMA (SVE of 512 bits": pair(16, tree=neighbours),
    }
    for name, loop in kernels.items():
        yield Path(f"{name})", Rule.NEON, loop)
        twos = name.replace(" (", ", twos a block at a time (")
        yield Path(f"{twos} with i8mm)", Rule.NEON, loop, twos=lanes.kernel(1, fused=True))
    last = pair(8, tree=neighbours, group=2)
    yield Path("pairs of blocks in eight lanes with FMA, two inputs together (NEON without dotprod)", Rule.NEON, last)


def _with_offsets() -> tuple[Path, ...]:
    """Q4_1."""
    apart, within, neon = Offsets.APART, Offsets.WITHIN, "pairs of blocks in eight lanes with FMA"
    twos, eight = lanes.kernel(1, True, Offsets.ROUNDED), partial(pairs.kernel, 8, True, False, Tree.NEIGHBOURS)
    return (
        Path("eight lanes with FMA (AVX2 and later)", Rule.HALF_EVEN, lanes.kernel(8, True, apart)),
        Path("eight lanes (AVX)", Rule.HALF_EVEN, lanes.kernel(8, False, apart)),
        Path("a block at a time (plain C)", Rule.HALF_AWAY, lanes.kernel(1, False, within)),
        Path(f"{neon} (NEON)", Rule.NEON, eight(offsets=True)),
        Path(f"{neon}, twos a block at a time (NEON with i8mm)", Rule.NEON, eight(offsets=True), twos=twos),
        Path(f"{neon}, two inputs together (NEON without dotprod)", Rule.NEON, eight(group=2, offsets=True)),
    )


def _two_levels(block: int, added: int) -> dict[str, tuple[Loop, ...]]:
    """What Q4_K and Q6_K have in common."""
    return {
        "eight lanes with FMA (AVX2 and later)": (super_lanes.avx(block, added, fused=True),),
        "a super-block at a time, activations scaled last (tiled)": (super_blocks.tiled(block),),
        "eight lanes (AVX)": (super_lanes.avx(block, added, fused=False),),
        "every eighth product in a lane (plain C)": (super_lanes.plain(block),),
    }


def _q4_k() -> tuple[Path, ...]:
    whole, quarter = super_blocks.kernel(32, 256), super_blocks.kernel(32, 64)
    first, eighth = super_blocks.kernel(32, 256, Minima.BEFORE), super_blocks.kernel(32, 32, Minima.AFTER)
    after = super_blocks.kernel(32, 256, Minima.AFTER)
    own = {
        "a quarter of a super-block at a time, left-over rows by whole ones (repacked)": (quarter, whole),
        "a super-block at a time, minima first (NEON)": (first,),
        "a quarter of a super-block at a time, minima last (ARM with dotprod, repacked)": (
            super_blocks.kernel(32, 64, Minima.AFTER),
        ),
        "a super-block at a time, minima first, left-over rows by eighths, minima last (ARM with i8mm, repacked)": (
            first, eighth,
        ),
    }  # fmt: skip
    return (
        *(Path(name, Rule.SUPER, *loops) for name, loops in (_two_levels(32, 0) | own).items()),
        Path("a super-block at a time, minima first, of twos last (NEON with i8mm)", Rule.SUPER, first, twos=after),
    )


def _q6_k() -> tuple[Path, ...]:
    whole = super_blocks.kernel(16, 256)
    own = {
        "a super-block at a time with FMA (NEON)": (whole,),
        "a super-block at a time with FMA, left-over rows without (ARM, repacked)": (
            whole, super_blocks.kernel(16, 256, fused=False),
        ),
    }  # fmt: skip
    return tuple(Path(name, Rule.SUPER, *loops) for name, loops in (_two_levels(16, 32) | own).items())


PATHS: dict[str, tuple[Path, ...]] = {
    "q4_0": _one_level(left=True),
    "q4_1": _with_offsets(),
    "q8_0": _one_level(left=False),
    "q4_K": _q4_k(),
    "q6_K": _q6_k(),
}
"""ggml's name of a type -> its known paths, those of recent processors first."""
