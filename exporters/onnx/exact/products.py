"""Matrix products whose result does not depend on the order of additions.

A linear layer multiplies integers: its input is rounded to one byte or two relative to the largest of its row, its
weights are integers already (`digits`), and what is added are int32 sums of products of bytes, which cannot round. The
weighted sum of these int32 sums is exact in float64, and rounds once, to float32.

The products of attention are float64 sums over values that lie on grids (`elementary.on_grid`): queries and keys on
one of their own for each token, weights and values on fixed ones, as what a token sees must not depend on the others.
"""

import numpy as np

from exporters.onnx.exact.digits import BASE
from exporters.onnx.exact.elementary import decay, largest, on_grid
from exporters.onnx.exact.emit import Emit

TINY = 1e-30  # below any activation that matters; keeps the division defined
INPUT_LIMIT = 127  # of the input's high byte
INPUT_BASE = 256
KEY_BITS = 20  # of queries and keys, relative to the largest of a head; twice that and a head's sum are below 53
VALUE_BITS = 20  # of values, relative to the bound of their layer
WEIGHT_BITS = 23  # of attention weights at most


def linear(emit: Emit, x: str, name: str, digits: int, activations: str, out: str) -> None:
    """``out = x @ W.T``: x [batch, tokens, in]; W by its digits ``NAME.high`` and ``NAME.low`` and ``NAME.unit`` [out].

    With 16 bits x is ``scale * (high + low / 256)``, and ``low`` is multiplied by the highest digit of W alone: four
    sums instead of six, for two bits of x.
    """
    x = emit("Unsqueeze", x, emit.integers(-2))
    scale = emit("Div", emit("Max", largest(emit, x), emit.constant(TINY)), emit.constant(INPUT_LIMIT))
    whole = emit("Div", x, scale)
    high = emit("Round", whole)
    rows = first = _unsigned(emit, high)
    if activations == "int16":
        low = emit("Round", emit("Mul", emit("Sub", whole, high), emit.constant(INPUT_BASE)))
        rows = emit("Concat", first, _unsigned(emit, low), axis=-2)
    point = emit.constant(128, np.uint8)
    sums = emit("MatMulInteger", rows, f"{name}.high", point)
    factors = [BASE ** (digits - 1)] + ([BASE ** (digits - 1) / INPUT_BASE] if activations == "int16" else [])
    if digits > 1:
        others = emit("MatMulInteger", first, f"{name}.low", point)
        split = emit("Reshape", others, emit.integers(0, 0, digits - 1, -1)) if digits > 2 else others
        sums = emit("Concat", sums, split, axis=-2)
        factors += [BASE**j for j in range(digits - 1)]
    total = emit.cast(emit("MatMul", emit.double([factors]), emit.cast(sums, "DOUBLE")), "FLOAT")
    scaled = emit("Mul", emit("Mul", total, f"{name}.unit"), scale)
    emit("Squeeze", scaled, emit.integers(-2), out=out)


def _unsigned(emit: Emit, x: str) -> str:
    """Integers from -128 to 127 as bytes, 128 standing for zero; 128, which a tie can give, becomes 127."""
    return emit("QuantizeLinear", x, emit.constant(1.0), emit.constant(128, np.uint8))


def linears(emit: Emit, x: str, group: str, digits: int, activations: str, widths: list[int], outs: list[str]) -> None:
    """`linear` for several matrices side by side: their rows, and what each gives."""
    if len(outs) == 1:
        linear(emit, x, group, digits, activations, outs[0])
        return
    product = f"{group}/product"
    linear(emit, x, group, digits, activations, product)
    emit.split(product, emit.integers(*widths), outs)


def lookup(emit: Emit, name: str, digits: int, rows: int, ids: str, out: str) -> None:
    """``out = W[ids]``, of W [rows, in] its digits and units: ids [batch, tokens] -> [batch, tokens, in].

    Digits are put together from the lowest on: the sum has no more bits than a weight, and no partial sum has.
    """
    total = ""
    for j in range(digits):
        lower = j < digits - 1
        at = emit("Add", ids, emit.constant(j * rows, np.int64)) if lower else ids
        digit = emit.cast(emit("Gather", f"{name}.low" if lower else f"{name}.high", at, axis=1), "FLOAT")
        term = emit("Mul", digit, emit.constant(BASE**j))
        total = emit("Add", total, term) if total else term
    unit = emit("Unsqueeze", emit("Gather", f"{name}.unit", ids, axis=0), emit.integers(0))
    emit("Transpose", emit("Mul", total, unit), out=out, perm=[1, 2, 0])


def rounded_key(emit: Emit, x: str, layer: int) -> str:
    """Keys of new tokens, on a grid of their own for each token and head."""
    return on_grid(emit, x, _key_sigma(emit, x))


def _key_sigma(emit: Emit, x: str) -> str:
    return emit("Mul", largest(emit, x), emit.constant(2.0 ** (23 - KEY_BITS)))


def rounded_value(emit: Emit, x: str, layer: int) -> str:
    """Values of new tokens, on the grid of their layer."""
    least, most, sigma = value_limits(layer, 1.0)
    return on_grid(emit, emit("Clip", x, least, most), sigma)


def value_limits(layer: int, bound: float) -> dict[str, float]:
    """The constants of `rounded_value` by name, where values of a layer stay below ``bound``, a power of two."""
    limits = {"least": -bound, "most": bound, "sigma": 1.5 * 2.0 ** (23 - VALUE_BITS) * bound}
    return {f"model.layers.{layer}.values.{name}": value for name, value in limits.items()}


def scores(emit: Emit, query: str, keys: str, out: str) -> None:
    """query [..., tokens, head_dim] @ keys [..., head_dim, past + tokens]; keys are rounded already.

    Both with the other sign: what stands between transpose and product keeps ONNX Runtime from fusing them to
    an operation that some of its versions lack in float64.
    """
    sigma = _key_sigma(emit, query)
    negative = emit("Sub", sigma, emit("Add", query, sigma))
    wide = emit.cast(negative, "DOUBLE"), emit.cast(emit("Neg", keys), "DOUBLE")
    emit.cast(emit("MatMul", *wide), "FLOAT", out)


def weights(emit: Emit, scores: str, context: int) -> tuple[str, str]:
    """(e, sum of e): float64 softmax weights before their division, on a grid on which sums over context are exact."""
    bits = min(WEIGHT_BITS, 53 - VALUE_BITS - (context - 1).bit_length())
    highest = emit("ReduceMax", scores, emit.integers(-1), keepdims=1)
    e = decay(emit, emit("Sub", highest, scores))
    wide = emit.cast(on_grid(emit, e, emit.constant(1.5 * 2.0 ** (23 - bits))), "DOUBLE")
    return wide, emit("ReduceSum", wide, emit.integers(-1), keepdims=1)


def weighted(emit: Emit, e: str, total: str, values: str, out: str) -> None:
    """The mean of values [..., past + tokens, head_dim] by the weights e; values are rounded already."""
    summed = emit("MatMul", e, emit.cast(values, "DOUBLE"))
    emit.cast(emit("Div", summed, total), "FLOAT", out)


def value_bound(longest: float, norm: float, width: int, bias: float) -> float:
    """A power of two above every value of a layer whose input comes from an RMS norm.

    longest: the largest Euclidean norm of the value projection's rows; norm: the largest factor of the norm before it,
    whose output is therefore no longer than ``norm * sqrt(width)``; bias: the largest.
    """
    bound = longest * norm * width**0.5 + bias
    return float(2.0 ** np.ceil(np.log2(max(bound, TINY))))
