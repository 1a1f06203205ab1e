"""How one logical tensor is stored: its parts, and where each lies in the data file.

A float tensor is one float32 part under its own name, [out, in]. A quantized one is transposed,
since ONNX Runtime fuses ``DequantizeLinear(axis=0) -> MatMul`` only for weights stored [in, out]:

    NAME.codes       UINT2, UINT4 or INT8   [in, out]           the stored integers, unchanged
    NAME.scale       FLOAT                  [in / block, out]   float32 holding the float16 value
    NAME.zero_point  like codes             [in / block, out]   always explicit
    NAME.offset      FLOAT                  [in / block, out]   grids with a float zero: that zero, unchanged

Codes of 3 bits are stored as UINT4; the values mean the same, and reading back refuses one beyond 7.
Two 4-bit or four 2-bit values share a byte, earlier ones in lower bits. Parts lie in the order of
their names, each at the next multiple of 64 bytes, with zeros between.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.packing import WIDTHS, pack_codes, unpack_codes
from edgeqaf.protocols import StoredAs
from edgeqaf.qtensor import QTensor, check

ALIGNMENT = 64
BLOCKS = (16, 32, 64, 128, 256)  # the block sizes that ONNX Runtime fuses to MatMulNBits
TYPES = {2: "UINT2", 3: "UINT4", 4: "UINT4", 8: "INT8"}  # bits of a grid's code -> type of its tensors
BITS = {"FLOAT": 32, "INT8": 8, "UINT4": 4, "UINT2": 2}


@dataclass(frozen=True)
class Part:
    """One initializer. type is the name of an onnx.TensorProto data type."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return -(-math.prod(self.shape) * BITS[self.type] // 8)


def refuses(grid: Grid) -> str | None:
    """Why ONNX cannot carry ``grid``, or None."""
    if grid.levels is not None:
        return "its scales are products of two levels, which ONNX would hold as floats, and not know apart again"
    if grid.bits not in TYPES:
        return f"codes of {grid.bits} bits; ONNX carries {', '.join(map(str, TYPES))}"
    low, high = (-128, 127) if grid.bits == 8 else (0, 2**grid.bits - 1)
    if grid.lo < low or grid.hi > high:
        return f"codes span [{grid.lo}, {grid.hi}], outside [{low}, {high}] of its {grid.bits}-bit type"
    if grid.block not in BLOCKS:
        return f"blocks of {grid.block}; ONNX Runtime fuses {', '.join(map(str, BLOCKS))}"
    return None


def stored_as(grid: Grid) -> StoredAs:
    """The type of the codes, and what a weight takes: codes, and a block's scale, zero point and offset."""
    bits = sum(math.prod(part.shape) * BITS[part.type] for part in parts("", (1, grid.block), grid))
    return StoredAs(TYPES[grid.bits], bits / grid.block)


def zero_point(grid: Grid) -> int:
    """The constant zero point of a grid without an integer zero of its own.

    With a float zero it is the middle of the codes: the integer term is then small on average, and
    the float term carries ``zero + zero_point * scale``.
    """
    return (grid.lo + grid.hi + 1) // 2 if grid.zero is Zero.OFFSET else grid.centre


def parts(name: str, shape: tuple[int, ...], grid: Grid | None) -> list[Part]:
    """The parts that store a tensor of logical ``shape``; grid is None for a float tensor."""
    if grid is None:
        return [Part(name, "FLOAT", shape)]
    out, inputs = shape
    codes, blocks = TYPES[grid.bits], (inputs // grid.block, out)
    stored = [
        Part(f"{name}.codes", codes, (inputs, out)),
        Part(f"{name}.scale", "FLOAT", blocks),
        Part(f"{name}.zero_point", codes, blocks),
    ]
    return [*stored, Part(f"{name}.offset", "FLOAT", blocks)] if grid.zero is Zero.OFFSET else stored


def place(stored: list[Part]) -> tuple[dict[str, int], int]:
    """(part name -> offset in the data file, length of that file)."""
    offsets, end = {}, 0
    for part in sorted(stored, key=lambda p: p.name):
        offsets[part.name] = -(-end // ALIGNMENT) * ALIGNMENT
        end = offsets[part.name] + part.nbytes
    return offsets, end


def pack(name: str, tensor: Tensor) -> Iterator[tuple[Part, NDArray[np.uint8]]]:
    """Each part of ``tensor`` with its bytes."""
    grid = tensor.grid if isinstance(tensor, QTensor) else None
    stored = parts(name, tuple(int(n) for n in tensor.shape), grid)
    for part, values in zip(stored, _values(tensor), strict=True):
        if part.type == "FLOAT":
            yield part, np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
        else:
            assert grid is not None
            flat = values.reshape(1, -1)
            whole = np.pad(flat, ((0, 0), (0, -flat.size % (8 // WIDTHS[grid.bits]))))  # the last byte too
            yield part, pack_codes(whole, grid).reshape(-1)


def _values(tensor: Tensor) -> Iterator[NDArray[Any]]:
    if not isinstance(tensor, QTensor):
        yield tensor
        return
    yield tensor.codes.T
    yield tensor.scale.T
    if tensor.grid.zero is Zero.CODE:
        yield tensor.zero.T.astype(np.int8)  # type: ignore[union-attr]
    else:
        yield np.full(tensor.scale.T.shape, zero_point(tensor.grid), np.int8)
    if tensor.grid.zero is Zero.OFFSET:
        yield tensor.zero.T  # type: ignore[union-attr]


def unpack(name: str, shape: tuple[int, ...], grid: Grid | None, read: Callable[[Part], NDArray[np.uint8]]) -> Tensor:
    """The tensor that `pack` stored, checked to lie on its grid; ``read`` returns a part's bytes.

    Raises Refused for a zero point that is not its grid's, or a value that is not finite.
    """
    values: Mapping[str, NDArray[Any]] = {p.name: _array(p, grid, read(p)) for p in parts(name, shape, grid)}
    if grid is None:
        if not np.isfinite(values[name]).all():
            raise Refused(f"{name} holds values that are not finite", "the file is corrupt; export it again")
        return values[name]
    points = values[f"{name}.zero_point"]
    if grid.zero is not Zero.CODE and (points != zero_point(grid)).any():
        wrong = int(points[points != zero_point(grid)][0])
        raise Refused(
            f"{name}.zero_point holds {wrong}, {grid.name} has {zero_point(grid)} everywhere",
            "the file is corrupt; export it again",
        )
    zero = {Zero.NONE: None, Zero.CODE: points.astype(np.float32), Zero.OFFSET: values.get(f"{name}.offset")}[grid.zero]
    q = QTensor(grid, values[f"{name}.codes"].T, values[f"{name}.scale"].T, None if zero is None else zero.T)
    return check(q, name)


def _array(part: Part, grid: Grid | None, raw: NDArray[np.uint8]) -> NDArray[Any]:
    if part.type == "FLOAT" or grid is None:
        return raw.view("<f4").astype(np.float32, copy=False).reshape(part.shape)
    return unpack_codes(raw.reshape(1, -1), grid)[0, : math.prod(part.shape)].reshape(part.shape)
