"""Functions that every runtime computes in its own way, written out in operations that have one result.

Add, Sub, Mul, Div and Sqrt of IEEE 754 are rounded correctly: equal bits wherever each is a step of its own.
A sum is exact, whatever its order, if its addends are multiples of one unit and all partial sums stay below
2**53 of it (2**24 in float32); `on_grid` makes addends so.
"""

import numpy as np

from exporters.onnx.exact.emit import Emit

MOST_HALVINGS = 31  # 2**-31 is next to nothing beside 1, and far from where float32 becomes subnormal
# 2**r for |r| <= 1 / 2, from the highest power down: minimax with one exact at 0, its error below 2**-23
EXP2 = (0.0013264727, 0.009671513, 0.055507336, 0.24022242, 0.693147, 1.0)
SUM_BITS = 36  # of an addend relative to the largest: sums of 2**15 of them are exact in float64
# Taylor's series for |r| <= pi / 4, in powers of r**2; the next term is below 2**-44
SIN = (-1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0)
COS = (1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0)
HALF_PI_HIGH = float(np.float32(np.pi / 2))  # 24 bits: its product with an integer below 2**29 is exact in float64
HALF_PI_LOW = np.pi / 2 - HALF_PI_HIGH


def on_grid(emit: Emit, x: str, sigma: str) -> str:
    """x rounded to multiples of half a unit in the last place of ``sigma``, which is larger than |x|.

    The sum rounds; the difference is exact (Rump, Ogita and Oishi 2008, Accurate floating-point summation, 3).
    """
    return emit("Sub", emit("Add", x, sigma), sigma)


def largest(emit: Emit, x: str) -> str:
    """The largest magnitude over the last axis, which stays with length 1."""
    return emit("ReduceMax", emit("Abs", x), emit.integers(-1), keepdims=1)


def mean(emit: Emit, x: str, count: int, out: str) -> None:
    """Mean over the last axis of float32 x, of ``count`` elements; the axis stays with length 1."""
    wide = emit.cast(x, "DOUBLE")
    sigma = emit("Mul", largest(emit, wide), emit.double(2.0 ** (53 - SUM_BITS)))
    total = emit("ReduceSum", on_grid(emit, wide, sigma), emit.integers(-1), keepdims=1)
    emit.cast(emit("Div", total, emit.double(count)), "FLOAT", out)


def reciprocal(emit: Emit, x: str, out: str) -> None:
    """1 / x as (1 / 2) / (x / 2): some runtimes approximate Reciprocal, and ONNX Runtime makes (1 / x) * y a y / x."""
    half = emit.constant(0.5)
    emit("Div", half, emit("Mul", x, half), out=out)


def decay(emit: Emit, x: str) -> str:
    """e**-x for x >= 0, not less than 2**-`MOST_HALVINGS`: 2**r, halved n times."""
    t = emit("Min", emit("Mul", x, emit.constant(1 / np.log(2))), emit.constant(MOST_HALVINGS))
    n = emit("Round", t)
    y = _polynomial(emit, emit("Sub", n, t), [emit.constant(c) for c in EXP2])
    power = emit("BitShift", emit.constant(1, np.uint32), emit.cast(n, "UINT32"), direction="LEFT")
    return emit("Div", y, emit.cast(power, "FLOAT"))


def sigmoid(emit: Emit, x: str, out: str) -> None:
    """1 / (1 + e**-x), from e = e**-|x|: 1 / (1 + e) or e / (1 + e)."""
    e, one = decay(emit, emit("Abs", x)), emit.constant(1.0)
    above = emit("Where", emit("Less", x, emit.constant(0.0)), e, one)
    emit("Div", above, emit("Add", e, one), out=out)


def tanh(emit: Emit, x: str, out: str = "") -> str:
    """Sign(x) * (1 - e) / (1 + e) with e = e**-2|x|."""
    size, one = emit("Abs", x), emit.constant(1.0)
    e = decay(emit, emit("Add", size, size))
    return emit("Mul", emit("Div", emit("Sub", one, e), emit("Add", one, e)), emit("Sign", x), out=out)


def gelu_tanh(emit: Emit, x: str, out: str) -> None:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3)))."""
    cube = emit("Mul", emit("Mul", emit("Mul", x, x), x), emit.constant(0.044715))
    inner = emit("Mul", emit("Add", x, cube), emit.constant(np.sqrt(2 / np.pi)))
    half = emit("Mul", x, emit.constant(0.5))
    emit("Mul", half, emit("Add", tanh(emit, inner), emit.constant(1.0)), out=out)


def cosine(emit: Emit, x: str, out: str) -> None:
    r, quadrant = _quadrant(emit, x)
    three = emit("Sub", emit.double(3.0), quadrant)
    sign = emit("Sub", emit.double(1.0), emit("Mul", quadrant, three))  # 1, -1, -1, 1
    _rotated(emit, _cos(emit, r), _sin(emit, r), quadrant, sign, out)


def sine(emit: Emit, x: str, out: str) -> None:
    r, quadrant = _quadrant(emit, x)
    half = emit("Floor", emit("Mul", quadrant, emit.double(0.5)))
    sign = emit("Sub", emit.double(1.0), emit("Add", half, half))  # 1, 1, -1, -1
    _rotated(emit, _sin(emit, r), _cos(emit, r), quadrant, sign, out)


def _quadrant(emit: Emit, x: str) -> tuple[str, str]:
    """(r, q) as float64: x = r + n * pi / 2 with |r| <= pi / 4 and q = n modulo 4."""
    x = emit.cast(x, "DOUBLE")
    n = emit("Round", emit("Mul", x, emit.double(2 / np.pi)))
    r = emit("Sub", x, emit("Mul", n, emit.double(HALF_PI_HIGH)))
    r = emit("Sub", r, emit("Mul", n, emit.double(HALF_PI_LOW)))
    four = emit.double(4.0)
    quadrant = emit("Sub", n, emit("Mul", emit("Floor", emit("Mul", n, emit.double(0.25))), four))
    return r, quadrant


def _rotated(emit: Emit, even: str, odd: str, quadrant: str, sign: str, out: str) -> None:
    """``even`` in the quadrants 0 and 2, ``odd`` in 1 and 3, with the sign: one of two products is zero."""
    half = emit("Floor", emit("Mul", quadrant, emit.double(0.5)))
    is_odd = emit("Sub", quadrant, emit("Add", half, half))
    chosen = emit("Add", emit("Mul", even, emit("Sub", emit.double(1.0), is_odd)), emit("Mul", odd, is_odd))
    emit.cast(emit("Mul", chosen, sign), "FLOAT", out)


def _sin(emit: Emit, r: str) -> str:
    return emit("Mul", r, _polynomial(emit, emit("Mul", r, r), [emit.double(c) for c in SIN]))


def _cos(emit: Emit, r: str) -> str:
    return _polynomial(emit, emit("Mul", r, r), [emit.double(c) for c in COS])


def _polynomial(emit: Emit, x: str, coefficients: list[str]) -> str:
    """Horner's rule, from the highest power down."""
    y = coefficients[0]
    for coefficient in coefficients[1:]:
        y = emit("Add", emit("Mul", y, x), coefficient)
    return y
