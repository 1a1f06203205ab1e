"""How ggml shares a product out, where a kernel takes rows and outputs in twos (ARM with int8 matrix products).

A product is cut into chunks of some rows by some outputs (`ggml_compute_forward_mul_mat` in ggml-cpu.c). The kernel for
twos has those chunks that are even both ways, of a product that is; the vector kernel has the others. So of 18 rows, in
chunks of 9, the kernel for twos has nothing.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeqaf.runs import cuts

CHUNK = 16  # rows or outputs, at most
FEWEST = 4  # chunks for one thread; where there would be fewer, it takes all at once


def in_twos(rows: int, outputs: int) -> NDArray[np.bool_]:
    """Which of ``rows`` by ``outputs`` products the kernel for twos has, in one thread."""
    found = np.zeros((rows, outputs), bool)
    if rows % 2 or outputs % 2:
        return found
    whole = -(-rows // CHUNK) * -(-outputs // CHUNK) < FEWEST
    for first, last in _shares(rows, rows if whole else CHUNK):
        for start, stop in _shares(outputs, outputs if whole else CHUNK):
            found[first:last, start:stop] = (last - first) % 2 == 0 and (stop - start) % 2 == 0
    return found


def _shares(count: int, most: int) -> Iterator[tuple[int, int]]:
    """As many runs as there are of ``most``, of equal length but for the last."""
    return cuts((count,), most=-(-count // -(-count // most)))
