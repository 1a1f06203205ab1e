"""What `edgeqaf.kernels.lanes` does to a number: steps without a branch, which make vectors where a loop takes them."""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

import numba
import numpy as np

INFINITE, MOST = np.float32(np.inf), np.float32(np.finfo(np.float32).max)
# Part of the machine code of each kernel: what it is told of the grid is a constant there.
step = numba.njit(error_model="numpy", forceinline=True)


@step
def half(x):
    """`to_half`: ties to even; infinite beyond float16."""
    size = abs(x)
    # Subnormal there: a multiple of 2^-24, the last place of a float32 near 1/2. Else 11 bits: Veltkamp's splitting.
    small, bound = (size + np.float32(0.5)) - np.float32(0.5), size * np.float32(8193)
    rounded = small if size < np.float32(2.0**-14) else bound - (bound - size)
    return np.copysign(rounded, x) if size < np.float32(65520) else INFINITE


@step
def finite(x):
    """`numpy.nan_to_num`."""
    return np.float32(0) if x != x else min(max(x, -MOST), MOST)


@step
def inverse(scale):
    found = np.float32(1) / scale
    return found if abs(found) < INFINITE else np.float32(0)


@step
def code(g, w, inverse, zero, whole):
    """`rounding._round` of one weight, as float32; inverse: of the scale; whole: the zero, rounded."""
    x = (w - zero) * inverse if g.offset else w * inverse
    if g.signed:
        x = np.copysign(np.floor(abs(x) + np.float32(0.5)), x)
    else:
        x = np.floor(x + g.half)  # one addition gives the codes of two (a test looks at every step)
        if g.stored:
            x += whole
    return min(max(x, g.lo), g.hi)


@step
def value(g, code, scale, zero):
    """`decode` of one code."""
    return code * scale + zero if g.offset else (code - (zero if g.stored else g.centre)) * scale


@step
def turned(bits):
    """The bits of a float32 as an integer in the numbers' order, and back: the rest of a negative number's turned."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@step
def start(g, factor, second, scale, zero):
    """One of `rounding._starts`; second: whether it is the other one."""
    fitted, half = scale * factor, (g.hi - g.lo) / np.float32(2)
    if g.offset:
        return fitted, zero + (scale - fitted) * half
    if not g.stored:
        return (-fitted if second else fitted), zero
    middle = g.lo + half
    exact = middle - finite((middle - zero) * scale / fitted)
    return fitted, min(max(np.ceil(exact) if second else np.floor(exact), g.lo), g.hi)


@step
def from_ends(g, low, high):
    """`rounding._end_of_grid` of a block's least and largest weight, where the grid has a zero."""
    low, high = low + np.float32(0), high + np.float32(0)
    if g.offset:
        return (high - low) / (g.hi - g.lo), low
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = (high - low) / (g.hi - g.lo)
    return scale, finite(g.lo - low / scale)
