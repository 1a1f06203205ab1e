"""The operations of a running model, to be held against the network's: is one not the same, and which is the first?"""

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.report import Difference, compare_bits, first_difference
from runtime_tests.ggml.forward.network import EMBEDDED, FLASH, NODES
from runtime_tests.ggml.library import Library
from runtime_tests.ggml.tap import NodeTap, Tensor, values

SHARES = "kq_soft_max"  # rows of cells, of which we have none beyond the sequence


class Nodes:
    """What llama.cpp's graph computed, evaluation by evaluation: name -> values. `tap` fills it."""

    def __init__(self, library: Library) -> None:
        self._c = library.c
        self._seen: list[dict[str, Floats]] = []
        self.tap = NodeTap(library, self._wanted, self._take)

    def watch(self, evaluation: int) -> "Watch":
        return Watch(self._seen[evaluation])

    def _wanted(self, node: Tensor) -> bool:
        return self._is_flash(node) or node.name.decode().rpartition("-")[0] in NODES or node.name.decode() in NODES

    def _is_flash(self, node: Tensor) -> bool:
        return bool(self._c.ggml_op_name(node.op) == b"FLASH_ATTN_EXT")

    def _take(self, node: Tensor) -> None:
        """The last operation of a name stands for it: a rotation for the product that it turns."""
        name = node.name.decode()
        if name == EMBEDDED:
            self._seen.append({})
        if self._is_flash(node):
            name = f"{FLASH}-{sum(key.startswith(FLASH) for key in self._seen[-1])}"
        self._seen[-1][name] = values(node).copy()


class Watch:
    """Is told of a network's nodes, and holds them against llama.cpp's; what llama.cpp does not name is passed over.

    nodes: how many were compared; compared, differing: numbers of values; first: difference.
    """

    def __init__(self, theirs: dict[str, Floats]) -> None:
        self._theirs = theirs
        self.nodes = self.compared = self.differing = 0
        self.first: Difference | None = None

    def __call__(self, name: str, ours: Floats) -> None:
        if name not in self._theirs:
            return
        other = self._theirs[name]
        other = other[0, ..., : ours.shape[-1]] if name.startswith(SHARES) else other
        other = np.ascontiguousarray(other).reshape(ours.shape)
        different = compare_bits(ours, other)
        self.nodes, self.compared = self.nodes + 1, self.compared + ours.size
        self.differing += int(different.sum())
        self.first = self.first or first_difference(f"node {name}", ours, other, different)
