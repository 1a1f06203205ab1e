"""Tensors as ggml's blocks and back: the fields of `exporters.gguf.layouts`, filled and read.

Values never pass through a float: codes move as integers, scales as the float16 bits they already are.

Which type carries which grid is the table `CARRIERS`, never the spelling: ggml's own q2_0 has blocks
of 64 and is not our q2_0. Grids of fewer bits travel in 4-bit types, whose weights include theirs:
``(c - 4) * d`` is ``((c + 4) - 8) * d``. To let GGUF carry another grid, add an entry.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.grid import Grid
from edgeqaf.parts import CODES, Parts, dtypes
from exporters.gguf.layouts import LAYOUTS, Layout


@dataclass(frozen=True)
class Carrier:
    """How a grid travels: in blocks of ``layout``, each code stored as ``code + shift``."""

    layout: Layout
    shift: int = 0


CARRIERS = {layout.grid: Carrier(layout) for layout in LAYOUTS.values()}
CARRIERS |= {
    "q3_0": Carrier(CARRIERS["q4_0"].layout, shift=8 - 4),
    "q2_0": Carrier(CARRIERS["q4_0"].layout, shift=8 - 2),
    "q3_1": Carrier(CARRIERS["q4_1"].layout),
    "q2_1": Carrier(CARRIERS["q4_1"].layout),
}
FIELDS = {"scale": "d", "zero": "m", "d": "d", "dmin": "dmin"}  # part of a tensor -> float16 field of a block


def pack(grid: Grid, parts: Parts) -> NDArray[np.void]:
    """The blocks of a tensor with these parts (`edgeqaf.parts`): structured array [out, in / weights of a block].

    Its bytes are the tensor's in the file.
    """
    carrier = CARRIERS[grid.name]
    layout, (out, inputs) = carrier.layout, parts[CODES].shape
    blocks = np.empty((out, inputs // layout.weights), layout.block)
    for part in parts.keys() & FIELDS.keys():
        blocks[FIELDS[part]] = parts[part]
    codes = parts[CODES].view(np.uint8).reshape(*blocks.shape, layout.weights)
    for coding in layout.codes:
        coding.write(blocks, codes + np.uint8(carrier.shift) if carrier.shift else codes)
    if layout.scales is not None:
        integers = [_bytes(parts.get(part), blocks.shape) for part in ("scales", "mins")]
        blocks["scales"] = layout.scales.pack(*integers)
    return blocks


def unpack(raw: bytes | NDArray[np.uint8], grid: Grid, shape: tuple[int, int]) -> Parts:
    """The inverse of `pack`: the parts of a tensor of ``shape`` [out, in], unchecked, in order; no view of ``raw``.

    A code that the carrier has and the grid lacks comes out beyond the grid, where `edgeqaf.parts.check` refuses it.
    """
    carrier = CARRIERS[grid.name]
    layout = carrier.layout
    blocks: NDArray[Any] = np.frombuffer(raw, layout.block).reshape(shape[0], shape[1] // layout.weights)
    codes = _read_codes(blocks, layout)
    if carrier.shift:
        codes -= np.uint8(carrier.shift)
    parts = {CODES: codes.view(np.int8).reshape(shape)}
    parts |= {part: blocks[FIELDS[part]].copy() for part in dtypes(grid) if part in FIELDS}
    if layout.scales is not None:
        scales, mins = layout.scales.unpack(blocks["scales"])
        parts["scales"] = scales.view(np.int8).reshape(shape[0], -1)
        if mins.size:
            parts["mins"] = mins.view(np.int8).reshape(shape[0], -1)
    return {part: parts[part] for part in dtypes(grid)}


def _read_codes(blocks: NDArray[Any], layout: Layout) -> NDArray[np.uint8]:
    """The stored codes [..., weights] of blocks [...]."""
    first, *others = layout.codes
    codes = first.read(blocks)
    for coding in others:
        codes |= coding.read(blocks)
    return codes


def _bytes(integers: NDArray[np.int8] | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """int8 [out, in / block] as the bytes of each super-block: [*shape, n]; nothing of nothing."""
    return np.empty((*shape, 0), np.uint8) if integers is None else integers.view(np.uint8).reshape(*shape, -1)
