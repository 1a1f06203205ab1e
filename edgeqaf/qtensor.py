"""The quantized tensor and the two functions everything else is defined by: `decode` and `fold`.

An adapter has no forward pass of its own. It proposes a `Delta`, and

- the training forward is  ``x @ decode(fold(q, delta)).T``
- merge is                 ``q = fold(q, delta)``

Both call the same `fold`, so a merge cannot lose anything: whatever rounding there is happened
inside the loop that could learn around it. The two functions use operators, ``reshape`` and
``clip`` only, so the same lines run on numpy arrays and on torch tensors, under autograd too.
No other function in the project may say what a stored number means; a faster path is allowed only
where a test shows it bit-equal to these.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeqaf.errors import GridError
from edgeqaf.grid import Grid, Slot, Zero

HALF_MIN, HALF_END = 0x38800000, 0x47800000  # float32 bits of 2^-14 and 2^16: float16's normal numbers lie between
Array = Any  # a numpy array or a torch tensor: both carry the operators used here


@dataclass(frozen=True)
class Supers:
    """What a two-level grid stores in place of scale and zero (`edgeqaf.grid.Levels`); frozen, always numpy.

    d, dmin:      float32 holding float16 values, [out, in / super-block].
    scales, mins: int8, [out, in / block].
    dmin, mins:   None where the grid has no zero.
    """

    d: Array
    scales: Array
    dmin: Array | None = None
    mins: Array | None = None

    @property
    def scale(self) -> Array:
        """The scale of each block: float32 [out, in / block], exact."""
        return self._times(self.d, self.scales)

    @property
    def zero(self) -> Array | None:
        """The zero of each block: float32 [out, in / block], exact; None without one."""
        return None if self.dmin is None else -self._times(self.dmin, self.mins)

    def rows(self, start: int, stop: int) -> "Supers":
        """Those of some rows of the matrix; nothing is copied."""
        some = (None if part is None else part[start:stop] for part in (self.d, self.scales, self.dmin, self.mins))
        return Supers(*some)

    def _times(self, halves: Array, integers: Array) -> Array:
        return (halves[..., None] * integers.reshape(*halves.shape, -1)).reshape(integers.shape)


@dataclass(frozen=True)
class QTensor:
    """A matrix on a grid.

    codes:  integers in [grid.lo, grid.hi], [out, in]; int8 at rest, float32 inside a training step.
    scale:  float32 holding float16 values, [out, in / block]; on a two-level grid, `Supers.scale`.
    zero:   None, or float32 holding codes (``Zero.CODE``) or float16 values (``Zero.OFFSET``),
            [out, in / block]; on a two-level grid, `Supers.zero`.
    supers: what a two-level grid stores, else None. What computes needs only the three above.
    """

    grid: Grid
    codes: Array
    scale: Array
    zero: Array | None = None
    supers: Supers | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.codes.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    def replace(self, **parts: Array) -> "QTensor":
        return replace(self, **parts)

    def rows(self, start: int, stop: int) -> "QTensor":
        """Some rows of the matrix; nothing is copied."""
        zero = None if self.zero is None else self.zero[start:stop]
        supers = None if self.supers is None else self.supers.rows(start, stop)
        return QTensor(self.grid, self.codes[start:stop], self.scale[start:stop], zero, supers)


@dataclass(frozen=True)
class Delta:
    """What an adapter proposes to add, slot by slot; a missing slot stays as it is.

    codes: integers (int16 at rest, within +-32640, so that sums cannot wrap; float32 under autograd),
           [out, in].
    zero:  in units of the grid's zero, [out, in / block]; rounded by `fold` to what is storable.
    scale: in units of the weights, [out, in / block]; the sum is rounded by `fold` to float16.
    """

    codes: Array | None = None
    zero: Array | None = None
    scale: Array | None = None

    @property
    def slots(self) -> frozenset[Slot]:
        written = {Slot.CODES: self.codes, Slot.SCALE: self.scale, Slot.ZERO: self.zero}
        return frozenset(slot for slot, part in written.items() if part is not None)


def decode(q: QTensor) -> Array:
    """The weights that ``q`` stands for: float32 [out, in]. This is the definition of every format."""
    out, inputs = q.shape
    codes = q.codes.reshape(out, inputs // q.grid.block, q.grid.block)
    scale = q.scale[..., None]
    if q.grid.zero is Zero.OFFSET:
        weights = codes * scale + q.zero[..., None]  # type: ignore[index]
    elif q.grid.zero is Zero.CODE:
        weights = (codes - q.zero[..., None]) * scale  # type: ignore[index]
    else:
        weights = (codes - q.grid.centre) * scale
    return weights.reshape(out, inputs)


def fold(q: QTensor, delta: Delta) -> QTensor:
    """Apply ``delta`` on q's own grid: codes clipped to [lo, hi], scales and zeros rounded to what is stored.

    Raises GridError when the delta writes a slot that the grid lacks.
    """
    foreign = delta.slots - q.grid.slots
    if foreign:
        raise GridError(
            f"grid {q.grid.name} has no {', '.join(sorted(s.value for s in foreign))} slot to write",
            f"use a grid with that slot; {q.grid.name} has {', '.join(sorted(s.value for s in q.grid.slots))}",
        )
    if delta.codes is not None:
        q = q.replace(codes=(q.codes + delta.codes).clip(q.grid.lo, q.grid.hi))
    if delta.scale is not None:
        q = q.replace(scale=to_half(q.scale + delta.scale))
    if delta.zero is not None:
        zero = q.zero + delta.zero
        if q.grid.zero is Zero.OFFSET:
            q = q.replace(zero=to_half(zero))
        else:
            q = q.replace(zero=zero.round().clip(q.grid.lo, q.grid.hi))
    return q


def to_half(x: Array) -> Array:
    """Round float32 values to the nearest float16, ties to even, and hold them in float32."""
    if isinstance(x, np.ndarray):
        with np.errstate(over="ignore"):  # becomes infinite, which `check` refuses by name
            return x.astype(np.float16).astype(np.float32)
    return x.half().float()


def check(q: QTensor, name: str = "tensor") -> QTensor:
    """Return ``q`` if it is a numpy QTensor at rest that lies on its grid; else raise GridError.

    Codes must be int8 within [lo, hi], shapes must agree, scales and offsets must be finite and
    float16-representable. Called at every border: load, quantize, merge, read_back.
    """
    if q.codes.ndim != 2 or not q.codes.size:
        raise GridError(f"{name}: codes of shape {tuple(q.codes.shape)} are no matrix [out, in] of weights")
    out, inputs = q.shape
    if not q.grid.fits(inputs):
        raise GridError(
            f"{name}: {inputs} columns are not a multiple of {q.grid.name}'s block ({q.grid.unit})",
            "keep this tensor in float, or choose a grid whose block divides its rows",
        )
    if q.codes.dtype != np.int8:
        raise GridError(f"{name}: codes are {q.codes.dtype}, not int8")
    low, high = int(q.codes.min()), int(q.codes.max())
    if low < q.grid.lo or high > q.grid.hi:
        raise GridError(
            f"{name}: codes span [{low}, {high}], outside {q.grid.name}'s [{q.grid.lo}, {q.grid.hi}]",
            "the file is corrupt, or was written for another grid",
        )
    if (q.zero is None) != (q.grid.zero is Zero.NONE):
        has = "no" if q.zero is None else "a"
        raise GridError(f"{name}: {q.grid.name} stores zero={q.grid.zero.value}, the tensor has {has} zero")
    if (q.supers is None) != (q.grid.levels is None):
        has = "no" if q.supers is None else "a"
        raise GridError(f"{name}: {q.grid.name} has {q.grid.levels or 'one level'}, the tensor has {has} second level")
    parameters = {"scale": q.scale} if q.zero is None else {"scale": q.scale, "zero": q.zero}
    for part, values in parameters.items():
        _check_array(f"{name}.{part}", values, (out, inputs // q.grid.block), np.float32)
        if part == "zero" and q.grid.zero is Zero.CODE:
            _check_integers(f"{name}.{part}", values, (q.grid.lo, q.grid.hi))
        elif q.supers is None:
            _check_halves(f"{name}.{part}", values)
    if q.supers is not None:
        _check_supers(q, q.supers, name)
    return q


def _check_supers(q: QTensor, supers: Supers, name: str) -> None:
    """Refuse a second level that is malformed, or of which scale and zero are not the products."""
    assert q.grid.levels is not None
    (out, inputs), levels = q.shape, q.grid.levels
    stored = [("d", supers.d, "scales", supers.scales, levels.scale)]
    if levels.zero is not None:
        stored.append(("dmin", supers.dmin, "mins", supers.mins, levels.zero))
    for half, d, integer, integers, span in stored:
        _check_array(f"{name}.{half}", d, (out, inputs // levels.block), np.float32)
        _check_halves(f"{name}.{half}", d)
        _check_array(f"{name}.{integer}", integers, (out, inputs // q.grid.block), np.int8)
        _check_integers(f"{name}.{integer}", integers, span)
    products = {"scale": supers.scale} if supers.zero is None else {"scale": supers.scale, "zero": supers.zero}
    for part, product in products.items():
        if (getattr(q, part).view(np.uint32) != product.view(np.uint32)).any():
            raise GridError(f"{name}.{part} is not the product that the second level stores")


def _check_array(name: str, values: Array, shape: tuple[int, int], dtype: type[np.generic]) -> None:
    if values is None or tuple(values.shape) != shape:
        raise GridError(f"{name}: shape {None if values is None else tuple(values.shape)}, expected {shape}")
    if values.dtype != dtype:
        raise GridError(
            f"{name}: dtype {values.dtype}, expected {np.dtype(dtype)}"
            + (" holding float16 values" if dtype is np.float32 else "")
        )


def _check_halves(name: str, values: Array) -> None:
    size = values.view(np.uint32) & 0x7FFFFFFF
    if ((size & 0x1FFF == 0) & (size - HALF_MIN < HALF_END - HALF_MIN)).all():
        return  # the common case, in fewer passes: all are normal numbers there
    wrong = ~np.isfinite(values) | (to_half(values) != values)
    if wrong.any():
        row, column = (int(i[0]) for i in np.nonzero(wrong))
        raise GridError(
            f"{name}[{row}, {column}] = {values[row, column]!r} is not a finite float16 value",
            "the file is corrupt, or its scales were never rounded to float16",
        )


def _check_integers(name: str, values: Array, span: tuple[int, int]) -> None:
    low, high = span
    if values.dtype == np.int8 and values.min() >= low and values.max() <= high:
        return
    wrong = ~((values >= low) & (values <= high) & (np.rint(values) == values))
    if wrong.any():
        row, column = (int(i[0]) for i in np.nonzero(wrong))
        raise GridError(
            f"{name}[{row}, {column}] = {values[row, column]!r} is not an integer in [{low}, {high}]",
            "the file is corrupt, or was written for another grid",
        )
