"""In which written form a kernel computes a product with a quantized matrix, as exact numbers.

A form is a sum of terms, each rounded once from its exact value where nothing rounds before; a term is a sum of
parts, each an integer for every input times a coefficient for every block. Forms that are equal on paper
(`edgeqaf.protocols.Form`) round differently where 24 bits do not suffice.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.protocols import Configuration, Form
from edgeqaf.qtensor import QTensor, Supers, decode, to_half

Doubles = NDArray[np.float64]
Columns = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """integers [out, blocks, n] times coefficient [out, blocks], in float64.

    per_block: the integers are equal within a block, so the kernel multiplies the block's activation sum.
    summable:  the integers are integers; decoded float weights are not, and no sum of them is certain.
    bits:      of the floats that products and sums are held in.
    """

    integers: Doubles
    coefficient: Doubles
    per_block: bool = False
    summable: bool = True
    bits: int = 24


Term = tuple[Part, ...]  # parts are added before the one rounding


def two_level(q: QTensor, configuration: Configuration) -> bool:
    """Whether the form has a super-block's ``d`` as coefficient, the scales of its blocks among the integers."""
    return q.supers is not None and configuration.offset_form is Form.FUSED


def unit(q: QTensor, configuration: Configuration) -> int:
    """Consecutive inputs that share a coefficient."""
    return q.grid.unit if two_level(q, configuration) else q.grid.block


def written_form(q: QTensor, configuration: Configuration, columns: Columns) -> list[Term]:
    """The terms in which this configuration's kernels compute a product with some inputs of ``q``.

    columns: [blocks, n], the inputs; those of one row share a coefficient (`unit`).
    """
    codes = _picked(q.codes, columns).astype(np.float64)
    if two_level(q, configuration):
        assert q.supers is not None
        return _two_level_form(q, q.supers, codes, columns)
    at = columns[:, 0] // q.grid.block
    scale = q.scale[:, at].astype(np.float64)
    stored = None if q.zero is None else q.zero[:, at].astype(np.float64)
    if configuration.offset_form is Form.HALF:
        return _half_form(_decoded(q, columns))
    if q.grid.zero is Zero.OFFSET:
        if configuration.offset_form is Form.DECODED:
            return [(Part(_decoded(q, columns).astype(np.float64), np.ones_like(scale), summable=False),)]
        assert stored is not None
        return _offset_form(q, codes, scale, stored, configuration)
    zero = np.float64(q.grid.centre) if stored is None else stored[..., None]
    if not configuration.split_zero:
        return [(Part(codes - zero, scale),)]
    zeros = np.broadcast_to(q.grid.lo - zero, codes.shape)
    return [(Part(codes - q.grid.lo, scale),), (Part(zeros, scale, per_block=True),)]


def _picked(codes: NDArray[np.int8], columns: Columns) -> NDArray[np.int8]:
    """codes [out, in] -> [out, *columns.shape]; consecutive ones are not gathered."""
    if columns.size and (np.diff(columns.ravel()) == 1).all():
        start = int(columns.flat[0])
        return codes[:, start : start + columns.size].reshape(-1, *columns.shape)
    return codes[:, columns]


def _decoded(q: QTensor, columns: Columns) -> Floats:
    """The weights of some inputs, [out, *columns.shape]: those of a matrix whose blocks are the rows of ``columns``."""
    at, blocks = columns[:, 0] // q.grid.block, replace(q.grid, block=columns.shape[1])
    codes, zero = _picked(q.codes, columns), None if q.zero is None else q.zero[:, at]
    weights: Floats = decode(QTensor(blocks, codes.reshape(len(codes), -1), q.scale[:, at], zero))
    return weights.reshape(codes.shape)


def _half_form(weights: Floats) -> list[Term]:
    """Weights rounded to float16, as integers times the last bit that any of their block has; sums in float16 too."""
    rounded = to_half(weights).astype(np.float64)
    bit = last_bit(rounded).min(-1)
    scale = np.where(np.isinf(bit), 1.0, bit)  # of a block of zeros
    return [(Part(rounded / scale[..., None], scale, bits=11),)]


def last_bit(values: Doubles) -> Doubles:
    """The value of the last set bit of float32 numbers; infinity for zero, which rounds nothing."""
    mantissa, exponent = np.frexp(values)
    integers = np.abs(mantissa * 2.0**24).astype(np.int64)
    last = (integers & -integers).astype(np.float64)
    return np.where(integers == 0, np.inf, np.ldexp(last, exponent - 24))


def _offset_form(q: QTensor, codes: Doubles, scale: Doubles, zero: Doubles, configuration: Configuration) -> list[Term]:
    ones = np.broadcast_to(1.0, codes.shape)
    if configuration.offset_form is Form.FUSED:
        return [(Part(codes, scale), Part(ones, zero, per_block=True))]
    middle = (q.grid.lo + q.grid.hi + 1) // 2
    centred = (zero + middle * scale).astype(np.float32)  # as the file stores it
    offset = (Part(ones, centred.astype(np.float64), per_block=True),)
    if not configuration.split_zero:
        return [(Part(codes - middle, scale),), offset]
    middles = np.broadcast_to(np.float64(q.grid.lo - middle), codes.shape)
    return [(Part(codes - q.grid.lo, scale),), (Part(middles, scale, per_block=True),), offset]


def _two_level_form(q: QTensor, supers: Supers, codes: Doubles, columns: Columns) -> list[Term]:
    """``d * integer dot - dmin * integer sum`` over super-blocks, block scales and minima among the integers."""
    at, blocks = columns[:, 0] // q.grid.unit, columns // q.grid.block
    integers = (codes - q.grid.centre) * supers.scales[:, blocks]
    terms: list[Term] = [(Part(integers, supers.d[:, at].astype(np.float64)),)]
    if supers.dmin is not None:
        assert supers.mins is not None
        mins = supers.mins[:, blocks].astype(np.float64)
        terms.append((Part(mins, -supers.dmin[:, at].astype(np.float64)),))
    return terms
