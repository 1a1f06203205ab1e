"""ggml's block types as data: the C struct as a numpy type, and how its fields code integers.

Sources: ggml-common.h (block_q4_0 and its like), ggml-quants.c, and for the numbers ggml.h (enum ggml_type)
and llama.h (enum llama_ftype).
"""

from dataclasses import dataclass

import numpy as np

from exporters.gguf.codings import Codes, Nibbles, Plain, Plane, Scales, SignedSixes, Sixes, Trits

F32, F16, BF16 = 0, 1, 30
F32_FILE = 0  # LLAMA_FTYPE_ALL_F32


@dataclass(frozen=True)
class Layout:
    """One ggml block type.

    name:      what ggml calls it.
    grid:      the grid that it is, bit for bit.
    ggml_type: its number; file_type: the number of a file made mostly of it.
    weights:   in a block.
    block:     the C struct: ``d`` (scale), ``m`` (offset) or ``dmin`` where there is one, and byte fields.
    codes:     what the codes are the sum of.
    scales:    the second level of a K-quant.
    """

    name: str
    grid: str
    ggml_type: int
    file_type: int
    weights: int
    block: np.dtype[np.void]
    codes: tuple[Codes, ...]
    scales: Scales | None = None

    @property
    def bijective(self) -> bool:
        """Whether no two patterns of a block's bytes mean the same integers; of trits, several bytes do."""
        return all(isinstance(coding, Plane) for coding in self.codes)


def _struct(**fields: str | int) -> np.dtype[np.void]:
    """A field of so many bytes, or of a type."""
    return np.dtype([(n, f) if isinstance(f, str) else (n, "u1", f) for n, f in fields.items()])


QUARTERS = Plane("qs", bits=2, low=0, width=32)
NIBBLES, HALVES = Plane("qs", bits=4, low=0, width=16), Plane("qs", bits=4, low=0, width=32)
FIFTH = Plane("qh", bits=1, low=4, width=1)

LAYOUTS = {
    layout.ggml_type: layout
    for layout in (
        Layout("Q4_0", "q4_0", 2, 2, 32, _struct(d="<f2", qs=16), (NIBBLES,)),
        Layout("Q4_1", "q4_1", 3, 3, 32, _struct(d="<f2", m="<f2", qs=16), (NIBBLES,)),
        Layout("Q5_0", "q5_0", 6, 8, 32, _struct(d="<f2", qh=4, qs=16), (NIBBLES, FIFTH)),
        Layout("Q5_1", "q5_1", 7, 9, 32, _struct(d="<f2", m="<f2", qh=4, qs=16), (NIBBLES, FIFTH)),
        Layout("Q8_0", "q8_0", 8, 7, 32, _struct(d="<f2", qs=32), (Plane("qs", bits=8, low=0, width=32),)),
        Layout(
            "Q2_K", "q2_k", 10, 10, 256, _struct(scales=16, qs=64, d="<f2", dmin="<f2"), (QUARTERS,), Nibbles()
        ),
        Layout(
            "Q3_K", "q3_k", 11, 11, 256, _struct(hmask=32, qs=64, scales=12, d="<f2"),
            (QUARTERS, Plane("hmask", bits=1, low=2, width=32)), SignedSixes(),
        ),
        Layout("Q4_K", "q4_k", 12, 14, 256, _struct(d="<f2", dmin="<f2", scales=12, qs=128), (HALVES,), Sixes()),
        Layout(
            "Q5_K", "q5_k", 13, 16, 256, _struct(d="<f2", dmin="<f2", scales=12, qh=32, qs=128),
            (HALVES, Plane("qh", bits=1, low=4, width=32)), Sixes(),
        ),
        Layout(
            "Q6_K", "q6_k", 14, 18, 256, _struct(ql=128, qh=64, scales=16, d="<f2"),
            (Plane("ql", bits=4, low=0, width=64), Plane("qh", bits=2, low=4, width=32)), Plain(),
        ),
        Layout("TQ1_0", "tq1_0", 34, 36, 256, _struct(qs=48, qh=4, d="<f2"), (Trits(),)),
        Layout("TQ2_0", "tq2_0", 35, 37, 256, _struct(qs=64, d="<f2"), (QUARTERS,)),
    )
}  # fmt: skip
