"""How ggml lays one block of a grid out in bytes, as numpy structured types.

A block type is data: the fields ``d`` (scale), ``m`` (offset, where the type has one) and ``qs``
(codes), in the order of the C struct. `pack` and `unpack` serve every entry; values never pass
through a float: codes move as integers, scales as the float16 bits they already are.

In 4-bit types byte ``j`` of ``qs`` holds code ``j`` in its low nibble and code ``j + block / 2`` in
its high one (ggml-quants.c, quantize_row_q4_0_ref).

Which type carries which grid is the table `CARRIERS`, never the spelling: ggml's own q2_0 has blocks
of 64 and is not our q2_0. Grids of fewer bits travel in 4-bit types, whose weights include theirs:
``(c - 4) * d`` is ``((c + 4) - 8) * d``. To let GGUF carry another grid, add an entry.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.grid import Grid
from edgeqaf.qtensor import QTensor

F32 = 0  # ggml.h, enum ggml_type
F32_FILE = 0  # llama.h, enum llama_ftype: LLAMA_FTYPE_ALL_F32


@dataclass(frozen=True)
class Layout:
    """One ggml block type.

    name:      what ggml calls it.
    grid:      the grid that it is, bit for bit.
    ggml_type: its number in ggml.h, enum ggml_type.
    file_type: the number for a file made mostly of it, llama.h, enum llama_ftype.
    block:     the C struct, ggml-common.h, block_q4_0 and its like.
    """

    name: str
    grid: str
    ggml_type: int
    file_type: int
    block: np.dtype[np.void]

    @property
    def nibbles(self) -> bool:
        """Whether two codes share a byte."""
        return self.block["qs"].base == np.uint8

    @property
    def weights(self) -> int:
        """Weights per block."""
        return int(self.block["qs"].shape[0]) * (2 if self.nibbles else 1)


@dataclass(frozen=True)
class Carrier:
    """How a grid travels: in blocks of ``layout``, each code stored as ``code + shift``."""

    layout: Layout
    shift: int = 0


Q4_0 = Layout("Q4_0", "q4_0", 2, 2, np.dtype([("d", "<f2"), ("qs", "u1", 16)]))
Q4_1 = Layout("Q4_1", "q4_1", 3, 3, np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]))
Q8_0 = Layout("Q8_0", "q8_0", 8, 7, np.dtype([("d", "<f2"), ("qs", "i1", 32)]))
LAYOUTS = {layout.ggml_type: layout for layout in (Q4_0, Q4_1, Q8_0)}
CARRIERS = {
    "q4_0": Carrier(Q4_0),
    "q3_0": Carrier(Q4_0, shift=8 - 4),
    "q2_0": Carrier(Q4_0, shift=8 - 2),
    "q4_1": Carrier(Q4_1),
    "q3_1": Carrier(Q4_1),
    "q2_1": Carrier(Q4_1),
    "q8_0": Carrier(Q8_0),
}


def pack(q: QTensor) -> NDArray[np.void]:
    """The blocks of ``q``: structured array [out, in / block]; its bytes are the tensor's in the file."""
    carrier = CARRIERS[q.grid.name]
    codes = q.codes.reshape(q.shape[0], -1, q.grid.block)
    blocks = np.empty(codes.shape[:2], carrier.layout.block)
    blocks["d"] = q.scale
    if q.zero is not None:
        blocks["m"] = q.zero
    if carrier.layout.nibbles:
        half = q.grid.block // 2
        unsigned = codes.view(np.uint8) + np.uint8(carrier.shift)
        blocks["qs"] = unsigned[..., :half] | (unsigned[..., half:] << 4)
    else:
        blocks["qs"] = codes
    return blocks


def unpack(raw: bytes, grid: Grid, shape: tuple[int, int]) -> QTensor:
    """The inverse of `pack`: the tensor of ``shape`` [out, in] that ``raw`` holds, unchecked.

    A code that the carrier has and the grid lacks comes out beyond the grid, where `check` refuses it.
    """
    carrier = CARRIERS[grid.name]
    layout = carrier.layout
    blocks: NDArray[Any] = np.frombuffer(raw, layout.block).reshape(shape[0], shape[1] // grid.block)
    codes = blocks["qs"]
    if layout.nibbles:
        codes = np.concatenate([codes & 15, codes >> 4], axis=-1).view(np.int8) - np.int8(carrier.shift)
    zero = blocks["m"].astype(np.float32) if "m" in (layout.block.names or ()) else None
    return QTensor(grid, np.ascontiguousarray(codes).reshape(shape), blocks["d"].astype(np.float32), zero)
