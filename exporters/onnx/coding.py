"""Rows of a tensor as its parts hold them, and back: arrays with the logical rows first, `Part.lanes` of them in one.

Codes and zero points come as uint8, several in one where the part packs them; scales and offsets as float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import parts as rest
from edgeqaf import qtensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.packing import WIDTHS, pack_codes, unpack_codes
from edgeqaf.parts import Parts
from edgeqaf.qtensor import QTensor
from exporters.onnx.parts import Part, zero_point

Array = NDArray[Any]
AGAIN = "the file is corrupt; export it again"


def encode(stored: Sequence[Part], grid: Grid, run: Parts) -> list[Array]:
    """Some rows on a grid, in the order of its parts."""
    codes = run["codes"]
    half = run["scale"]
    points = run["zero"] if grid.zero is Zero.CODE else np.full(half.shape, zero_point(grid), np.int8)
    values = [codes, half.astype("<f4"), points]
    if grid.zero is Zero.OFFSET:
        values.append(run["zero"].astype("<f4"))
    return [
        array if part.type == "FLOAT" else _packed(part, grid, array)
        for part, array in zip(stored, values, strict=True)
    ]


def _packed(part: Part, grid: Grid, codes: Array) -> Array:
    """int8 [rows, n] -> uint8 [rows / lanes, n], or with n packed where rows lie together."""
    if not part.across:
        shifted = (codes.view(np.uint8) ^ np.uint8(0x80)).view(np.int8) if grid.bits == 8 else codes
        return pack_codes(np.pad(shifted, ((0, 0), (0, -codes.shape[1] % (8 // WIDTHS[grid.bits])))), grid)
    lanes = codes.view(np.uint8).reshape(-1, part.lanes, codes.shape[1])
    shared = lanes[:, 0]
    for i in range(1, part.lanes):
        shared = shared | lanes[:, i] << np.uint8(8 // part.lanes * i)
    return np.ascontiguousarray(shared)


def decode(name: str, stored: Sequence[Part], grid: Grid, arrays: Sequence[Array], columns: int) -> Parts:
    """The inverse of `encode`, checked: raises Refused or GridError for what is no row on the grid.

    columns: weights of a row.
    """
    blocks = columns // grid.block
    codes, scale, points, *offsets = (
        array if part.type == "FLOAT" else _unpacked(part, grid, array, name, blocks if i else columns)
        for i, (part, array) in enumerate(zip(stored, arrays, strict=True))
    )
    if grid.zero is not Zero.CODE and (points != zero_point(grid)).any():
        wrong = int(points[points != zero_point(grid)][0])
        raise Refused(f"{name}.zero_point holds {wrong}, {grid.name} has {zero_point(grid)} everywhere", AGAIN)
    floats: Mapping[str, Array] = {"scale": scale} | ({"zero": offsets[0]} if offsets else {})
    with np.errstate(over="ignore"):  # becomes infinite, which the check refuses by name
        run = {"codes": codes} | {part: array.astype("<f2") for part, array in floats.items()}
    if grid.zero is Zero.CODE:
        run["zero"] = points
    if any(
        (run[part].astype(np.float32).view(np.uint32) != array.view(np.uint32)).any() for part, array in floats.items()
    ):
        zero = offsets[0] if offsets else points.astype(np.float32) if grid.zero is Zero.CODE else None
        qtensor.check(QTensor(grid, codes, scale, zero), name)
    return rest.check(grid, run, name)


def _unpacked(part: Part, grid: Grid, packed: Array, name: str, columns: int) -> Array:
    """The inverse of `_packed`."""
    if not part.across:
        codes = unpack_codes(np.ascontiguousarray(packed), grid)
        if codes[:, columns:].any():
            raise Refused(f"{part.name} has a bit set after the end of a row", AGAIN)
        codes = codes[:, :columns]
        return (codes.view(np.uint8) ^ np.uint8(0x80)).view(np.int8) if grid.bits == 8 else codes
    bits = 8 // part.lanes
    if part.lanes == 1:
        return packed.view(np.int8)
    rows = np.empty((len(packed), part.lanes, packed.shape[1]), np.uint8)
    for i in range(part.lanes):
        rows[:, i] = packed >> np.uint8(bits * i) & np.uint8(2**bits - 1)
    return rows.reshape(-1, packed.shape[1]).view(np.int8)


def flat_packed(codes: Array, grid: Grid) -> Array:
    """uint8 codes, one each, in the file's order, as the bytes of a `loose` part."""
    flat = codes.reshape(1, -1).view(np.int8)
    packed: Array = pack_codes(np.pad(flat, ((0, 0), (0, -flat.size % (8 // WIDTHS[grid.bits])))), grid)
    return packed.reshape(-1)


def flat_unpacked(raw: Array, grid: Grid, part: Part) -> Array:
    """The inverse of `flat_packed`: uint8 in the part's shape; Refused for bits after the last code."""
    codes: Array = unpack_codes(raw.reshape(1, -1), grid)[0].view(np.uint8)
    count = part.shape[0] * part.shape[1]
    if codes[count:].any():
        raise Refused(f"{part.name} has a bit set after its last code", AGAIN)
    return codes[:count].reshape(part.shape)
