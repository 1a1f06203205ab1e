"""How ggml lays one block of a grid out in bytes, as numpy structured types.

A block type is data: the fields ``d`` (scale), ``m`` (offset, where the grid has one) and ``qs``
(codes), in the order of the C struct. `pack` and `unpack` serve every entry; values never pass
through a float: codes move as integers, scales as the float16 bits they already are.

In 4-bit types byte ``j`` of ``qs`` holds code ``j`` in its low nibble and code ``j + block / 2`` in
its high one (ggml-quants.c, quantize_row_q4_0_ref). To let GGUF carry another grid, add an entry.
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

    ggml_type: its number in ggml.h, enum ggml_type.
    file_type: the number for a file made mostly of it, llama.h, enum llama_ftype.
    block:     the C struct, ggml-common.h, block_q4_0 and its like.
    """

    ggml_type: int
    file_type: int
    block: np.dtype[np.void]

    @property
    def weights(self) -> int:
        """Weights per block."""
        codes = self.block["qs"]
        return int(codes.shape[0]) * (2 if codes.base == np.uint8 else 1)


LAYOUTS = {
    "q4_0": Layout(2, 2, np.dtype([("d", "<f2"), ("qs", "u1", 16)])),
    "q4_1": Layout(3, 3, np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])),
    "q8_0": Layout(8, 7, np.dtype([("d", "<f2"), ("qs", "i1", 32)])),
}


def pack(q: QTensor) -> NDArray[np.void]:
    """The blocks of ``q``: structured array [out, in / block]; its bytes are the tensor's in the file."""
    layout = LAYOUTS[q.grid.name].block
    codes = q.codes.reshape(q.shape[0], -1, q.grid.block)
    blocks = np.empty(codes.shape[:2], layout)
    blocks["d"] = q.scale
    if q.zero is not None:
        blocks["m"] = q.zero
    if q.grid.bits == 4:
        half = q.grid.block // 2
        unsigned = codes.view(np.uint8)
        blocks["qs"] = unsigned[..., :half] | (unsigned[..., half:] << 4)
    else:
        blocks["qs"] = codes
    return blocks


def unpack(raw: bytes, grid: Grid, shape: tuple[int, int]) -> QTensor:
    """The inverse of `pack`: the tensor of ``shape`` [out, in] that ``raw`` holds, unchecked."""
    layout = LAYOUTS[grid.name].block
    blocks: NDArray[Any] = np.frombuffer(raw, layout).reshape(shape[0], shape[1] // grid.block)
    stored = blocks["qs"]
    codes = np.concatenate([stored & 15, stored >> 4], axis=-1).view(np.int8) if grid.bits == 4 else stored
    zero = blocks["m"].astype(np.float32) if "m" in (layout.names or ()) else None
    return QTensor(grid, np.ascontiguousarray(codes).reshape(shape), blocks["d"].astype(np.float32), zero)
