"""Which known arithmetic this llama.cpp has between its quantized products: a self-test, on the processor at hand.

Each operation is asked for by itself, on random inputs in the model's own sizes: products of floats for one row and
for more, softmax, SwiGLU, norm, rotation, flash attention for few rows and for many. The first known arithmetic that
has the bits of all of them is the build's.

It must be so, and not by the logits alone: rounding activations to 8 bits, and scales to float16, hides most
differences in a last bit, and a whole model can have equal logits under an arithmetic that is wrong in every rotation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.qtensor import to_half
from edgeqaf.report import compare_bits
from runtime_tests.ggml.forward.arithmetic import KNOWN, Arithmetic
from runtime_tests.ggml.forward.attention import Cache, attend, softmax
from runtime_tests.ggml.forward.exponential import swiglu
from runtime_tests.ggml.forward.family import Shape
from runtime_tests.ggml.forward.flash import PADDED, ROWS, SHARED, flash
from runtime_tests.ggml.forward.norm import rms_norm
from runtime_tests.ggml.matmul import Cpu
from runtime_tests.ggml.operation import compute

FEW, MANY = 5, ROWS + 3  # rows
WIDTHS = 352, 356  # of trial rows: whole registers of every kernel and half of one, and some more
NORMAL, NEOX = 0, 2  # rope types


@dataclass(frozen=True)
class Trial:
    """An operation: its name, what the library computes, and what an arithmetic does."""

    name: str
    found: Floats
    again: Callable[[Arithmetic], Floats]

    def fits(self, arithmetic: Arithmetic) -> bool:
        return not compare_bits(self.again(arithmetic).reshape(-1), self.found).any()


def identify(cpu: Cpu, shape: Shape) -> Arithmetic:
    """The first known arithmetic with the library's bits in all trials; RuntimeAbsent if there is none."""
    found = [*trials(cpu, shape)]
    for arithmetic in KNOWN:
        if all(trial.fits(arithmetic) for trial in found):
            return arithmetic
    nearest = max(KNOWN, key=lambda arithmetic: sum(trial.fits(arithmetic) for trial in found))
    unknown = [trial.name for trial in found if not trial.fits(nearest)]
    raise RuntimeAbsent(
        f"this build's {', '.join(unknown)} has no arithmetic known here; otherwise it is {nearest.name}",
        "the bounded comparison with PyTorch stands",
    )


def trials(cpu: Cpu, shape: Shape) -> Iterator[Trial]:
    """All of them. Their inputs are the same on every machine."""
    rng = np.random.default_rng(0)

    def normal(*size: int) -> Floats:
        return rng.normal(0, 1, size).astype(np.float32)

    for inputs in (shape.size, *WIDTHS):
        for rows in (1, FEW):
            yield from _products(cpu, normal(rows, inputs), normal(8, inputs))
    gate, up, weight = normal(FEW, 67) * 40, normal(FEW, 67), normal(67)
    gate.flat[::7] *= 4  # beyond what exp can hold
    yield Trial(
        "SwiGLU",
        compute(cpu, lambda c, context, a, b: c.ggml_swiglu_split(context, a, b), gate, up),
        lambda a: swiglu(a.exponential, gate, up),
    )
    yield Trial(
        "RMSNorm",
        compute(cpu, lambda c, at, x, w: c.ggml_mul(at, c.ggml_rms_norm(at, x, shape.epsilon), w), up, weight),
        lambda a: rms_norm(up, weight, shape.epsilon),
    )
    yield _rotation(cpu, shape, normal(FEW, 3, shape.size))
    yield _softmax(cpu, normal(MANY, PADDED))
    for half, rows in product((False, True), (1, MANY)):
        yield _attention(cpu, shape, rows, normal, half)
    for rows, used in ((1, SHARED), (FEW, PADDED - 9), (MANY, PADDED - 9)):
        yield _flash(cpu, shape, rows, used, normal)


def _products(cpu: Cpu, x: Floats, w: Floats) -> Iterator[Trial]:
    rows = _rows(len(x))

    def multiply(c: Any, context: int, w: int, x: int) -> int:
        return int(c.ggml_mul_mat(context, w, x))

    def again(matrix: Floats, x: Floats, half: bool) -> Callable[[Arithmetic], Floats]:
        columns = np.ascontiguousarray(matrix.T)

        def multiplied(a: Arithmetic) -> Floats:
            order = (a.half if half else a.single).order(len(x), x.shape[1], len(matrix), contiguous=True)
            return order.product(x, columns)

        return multiplied

    yield Trial(f"product of float32, {rows} of {x.shape[1]}", compute(cpu, multiply, w, x), again(w, x, False))
    found = compute(cpu, multiply, w.astype(np.float16), x)
    yield Trial(f"product of float16, {rows} of {x.shape[1]}", found, again(to_half(w), to_half(x), True))


def _rotation(cpu: Cpu, shape: Shape, x: Floats) -> Trial:
    """Positions from 900 on, where float32 angles are rough."""
    rope, first = shape.rope, 900
    mode = NEOX if rope.halves else NORMAL
    positions = np.arange(first, first + len(x), dtype=np.int32)

    def build(c: Any, context: int, x: int, positions: int, *factors: int) -> int:
        divisors, about = factors[0] if factors else None, (rope.base, rope.scale, 0, 1, 32, 1)
        return int(c.ggml_rope_ext(context, x, positions, divisors, rope.size, mode, 0, *about))

    inputs = (x, positions) if rope.factors is None else (x, positions, rope.factors)
    return Trial("rotation", compute(cpu, build, *inputs), lambda a: rope.rotate(x, first, a.fused))


def _softmax(cpu: Cpu, scores: Floats) -> Trial:
    """Many rows: how wide the vectors are shows in few of the sums."""
    mask, scale = _mask(MANY, PADDED, PADDED).astype(np.float32), np.float32(4)
    found = compute(cpu, lambda c, at, x, mask: c.ggml_soft_max_ext(at, x, mask, scale, 0), scores, mask)

    def again(a: Arithmetic) -> Floats:
        shares = scores.copy()
        softmax(shares, scale, PADDED - MANY, a.exponential)
        return shares

    return Trial("softmax", found, again)


def _attention(cpu: Cpu, shape: Shape, rows: int, normal: Callable[..., Floats], half: bool) -> Trial:
    """Scores, softmax and mix of one head, laid out as in a model of several."""
    cache, q, scale = _filled(shape, PADDED, normal, half), normal(rows, 2, shape.size), np.float32(0.25)
    kind = np.float16 if half else np.float32
    keys, values = cache.keys[0].T.astype(kind), cache.values[0].T.astype(kind)
    mask = _mask(rows, PADDED, PADDED).astype(np.float32)

    def build(c: Any, context: int, q: int, keys: int, values: int, mask: int) -> int:
        scores = c.ggml_mul_mat(context, keys, c.ggml_permute(context, q, 0, 2, 1, 3))
        shares = c.ggml_soft_max_ext(context, scores, mask, scale, 0)
        return int(c.ggml_mul_mat(context, values, shares))

    def again(a: Arithmetic) -> Floats:
        mixed = attend(a, q, cache, scale, lambda name, values: None)
        return mixed.reshape(rows, 2, -1).swapaxes(0, 1)

    name = f"attention in {'float16' if half else 'float32'}, {_rows(rows)}"
    return Trial(name, compute(cpu, build, q, keys, values, mask), again)


def _flash(cpu: Cpu, shape: Shape, rows: int, used: int, normal: Callable[..., Floats]) -> Trial:
    cache, q, scale = _filled(shape, used, normal, half=True), normal(rows, 2, shape.size), np.float32(0.25)
    padded = -(-used // PADDED) * PADDED
    keys, values = np.zeros((2, padded, shape.size), np.float16)
    keys[:used], values[:used] = cache.keys[0].T[:used], cache.values[0][:used]
    mask = _mask(rows, used, padded)

    def build(c: Any, context: int, q: int, keys: int, values: int, mask: int) -> int:
        turned = c.ggml_permute(context, q, 0, 2, 1, 3)
        return int(c.ggml_flash_attn_ext(context, turned, keys, values, mask, scale, 0, 0))

    found = compute(cpu, build, q, keys, values, mask)
    return Trial(f"flash attention, {_rows(rows)}", found, lambda a: flash(a, q, cache, scale, cpu.threads))


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _filled(shape: Shape, used: int, normal: Callable[..., Floats], half: bool) -> Cache:
    """A cache of one head."""
    cache = Cache(1, shape.size, used, half)
    cache.append(normal(used, 1, shape.size), normal(used, 1, shape.size))
    return cache


def _mask(rows: int, used: int, cells: int) -> NDArray[np.float16]:
    """Of the last ``rows`` positions: each sees what is not behind it."""
    behind = np.arange(cells) > used - rows + np.arange(rows)[:, None]
    return np.where(behind, np.float16(-np.inf), np.float16(0))
