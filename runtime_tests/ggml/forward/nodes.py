"""Every operation of a running model, to be held against the network's: which is the first that differs?"""

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.report import Difference, compare_bits, first_difference
from runtime_tests.ggml import structs
from runtime_tests.ggml.library import Library
from runtime_tests.ggml.tap import NodeTap, Tensor, values

FIRST = "embd"  # of each evaluation
SHARES = "kq_soft_max"  # rows of cells, of which we have none beyond the sequence
FLASH = "fattn"  # llama.cpp gives its result no name


class Nodes:
    """What llama.cpp's graph computed, evaluation by evaluation: name -> values. `tap` fills it."""

    def __init__(self, library: Library) -> None:
        self._c = library.c
        self._seen: list[dict[str, Floats]] = []
        self.tap = NodeTap(library, self._wanted, self._take)

    def watch(self, evaluation: int) -> "Watch":
        return Watch(self._seen[evaluation])

    def _wanted(self, node: Tensor) -> bool:
        return bool(node.type == structs.TYPE_F32)

    def _take(self, node: Tensor) -> None:
        """The last operation of a name stands for it: a rotation for the product that it turns."""
        name = node.name.decode()
        if name == FIRST:
            self._seen.append({})
        if self._c.ggml_op_name(node.op) == b"FLASH_ATTN_EXT":
            name = f"{FLASH}-{sum(key.startswith(FLASH) for key in self._seen[-1])}"
        self._seen[-1][name] = values(node).copy()


class Watch:
    """Is told of a network's nodes, and keeps the first that differs from llama.cpp's.

    compared: how many there were; one whose name llama.cpp does not know is passed over.
    """

    def __init__(self, theirs: dict[str, Floats]) -> None:
        self._theirs = theirs
        self.compared = 0
        self.first: Difference | None = None

    def __call__(self, name: str, ours: Floats) -> None:
        if self.first or name not in self._theirs:
            return
        other = self._theirs[name]
        other = other[0, ..., : ours.shape[-1]] if name.startswith(SHARES) else other
        other = np.ascontiguousarray(other).reshape(ours.shape)
        self.compared += 1
        self.first = first_difference(f"node {name}", ours, other, compare_bits(ours, other))
