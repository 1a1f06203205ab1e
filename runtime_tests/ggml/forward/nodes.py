"""Every operation of a running model, to be held against the network's: which is the first that differs?"""

from collections.abc import Callable

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.report import Difference, compare_bits, first_difference
from runtime_tests.ggml import structs
from runtime_tests.ggml.library import Library
from runtime_tests.ggml.tap import NodeTap, Tensor, values

FIRST = "embd"  # of each evaluation
SHARES = "kq_soft_max"  # rows of cells, of which we have none beyond the sequence


class Nodes:
    """What llama.cpp's graph computed, evaluation by evaluation: name -> values; `tap` fills it."""

    def __init__(self, library: Library) -> None:
        self._c = library.c
        self._seen: list[dict[str, Floats]] = []
        self.tap = NodeTap(library, self._wanted, self._take)

    def watch(self, evaluation: int) -> tuple[Callable[[str, Floats], None], list[Difference]]:
        """What a network is to tell of its nodes, and the list that has the first difference once there is one."""
        found: list[Difference] = []
        theirs = self._seen[evaluation]

        def see(name: str, ours: Floats) -> None:
            if found or name not in theirs:
                return
            other = theirs[name][0, ..., : ours.shape[-1]] if name.startswith(SHARES) else theirs[name]
            other = np.ascontiguousarray(other).reshape(ours.shape)
            difference = first_difference(f"node {name}", ours, other, compare_bits(ours, other))
            found.extend([difference] if difference else [])

        return see, found

    def _wanted(self, node: Tensor) -> bool:
        return node.type == structs.TYPE_F32

    def _take(self, node: Tensor) -> None:
        """The last operation of a name stands for it: a rotation for the product that it turns."""
        name = node.name.decode()
        if name == FIRST:
            self._seen.append({})
        if self._c.ggml_op_name(node.op) == b"FLASH_ATTN_EXT":
            seen = sum(key.startswith("fattn-") for key in self._seen[-1])
            name = f"fattn-{seen}"
        self._seen[-1][name] = values(node).copy()
