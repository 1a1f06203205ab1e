"""Which known arithmetic a kernel of this llama.cpp has: a self-test, on the processor at hand.

The library's own product is asked for a matrix under random activations, among them many that lie halfway between two
8-bit integers, with as many rows as the case in question; the first known path with the same bits on all outputs is
the kernel's.
"""

from collections.abc import Callable

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.parts import join, split
from edgeqaf.qtensor import QTensor
from edgeqaf.report import compare_bits
from runtime_tests.ggml.emulate.activations import BLOCK
from runtime_tests.ggml.emulate.paths import PATHS, Path
from runtime_tests.trials import activations

SAMPLE = 256  # outputs that are computed again, of those that the library computes


def identify(multiply: Callable[[Floats], Floats], type_name: str, q: QTensor, rows: int) -> Path | None:
    """The path of the library's products of ``rows`` rows with ``q``, which is stored as ggml's type; None if unknown.

    multiply: the library's, float32 [rows, in] -> [rows, out].
    """
    out, inputs = q.shape
    sample = np.unique(np.linspace(0, out - 1, min(out, SAMPLE)).astype(int))
    part = join(q.grid, {name: values[sample] for name, values in split(q).items()})
    trials = [(x, multiply(x)[:, sample]) for x in activations(rows, inputs, BLOCK)]
    for path in PATHS.get(type_name, ()):
        if not any(compare_bits(path.product(part, x), y).any() for x, y in trials):
            return path
    return None
