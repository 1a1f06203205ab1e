"""Where a tensor of the model is in a file, and what is done to it on the way there and back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.runs import Run


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a decoder. rotary: how many of a head's dimensions are rotated."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    vocab: int


@dataclass(frozen=True)
class Place:
    """One tensor.

    logical, stored:   its name in a Hugging Face checkpoint, and in the file.
    shape:             the same in both.
    interleaved_heads: heads whose rows are interleaved in the file, or 0. llama.cpp rotates neighbouring
                       pairs of a head's rows (RoPE "norm"), Hugging Face the two halves: row ``2 i + j`` of a
                       head in the file is logical row ``j head_dim / 2 + i`` (llama.cpp conversion/llama.py,
                       LlamaModel.permute). Whole rows move, codes and scales together.
    added:             what a float tensor's values in the file have on top of the logical ones.
    """

    logical: str
    stored: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0
    added: float = 0.0

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """`edgeqaf.protocols.Stored.rows`: row i of the file holds logical row rows[i]."""
        if not self.interleaved_heads:
            return None
        rows = np.arange(self.shape[0], dtype=np.int64)
        return rows.reshape(self.interleaved_heads, 2, -1).swapaxes(1, 2).reshape(-1)

    def within(self, logical: str, stored: str) -> "Place":
        """The same with a prefix before either name."""
        return replace(self, logical=logical + self.logical, stored=stored + self.stored)

    @property
    def unit(self) -> int:
        """Rows that stay together: those of a head where they are interleaved."""
        return self.shape[0] // self.interleaved_heads if self.interleaved_heads else 1

    def some(self, count: int) -> "Place":
        """The same for ``count`` rows from a multiple of `unit` on, which have the same place in the file."""
        heads = count // self.unit if self.interleaved_heads else 0
        return replace(self, shape=(count, *self.shape[1:]), interleaved_heads=heads)

    def to_file(self, run: Run) -> Run:
        """Logical rows (see `some`) as the file holds them; Refused where values could not be told from the file's."""
        moved = self._moved(run)
        if not self.added:
            return moved
        values = self._floats(moved)
        shifted = values + np.float32(self.added)
        if ((shifted - np.float32(self.added)).view(np.uint32) != values.view(np.uint32)).any():
            raise Refused(
                f"{self.logical}: GGUF stores {self.added:g} + its values, which rounds some of them",
                "quantize the float model again; edgeqaf drops what rounds off when it reads one",
            )
        return shifted

    def unshifted(self, rows: Floats) -> Floats:
        """Rows from the file without what is `added` to them there."""
        return rows - np.float32(self.added) if self.added else rows

    def _moved(self, run: Run) -> Run:
        """The rows in the file's order, codes and parameters together."""
        order = self.rows
        if order is None:
            return run
        return {part: array[order] for part, array in run.items()} if isinstance(run, Mapping) else run[order]

    def _floats(self, run: Run) -> Floats:
        if isinstance(run, Mapping):
            raise Refused(f"{self.logical} is on a grid", "keep vectors in float")
        return run
