"""Which known arithmetic a kernel of an ONNX Runtime has: a self-test, in that runtime, as it is set up.

A linear cut out of the model is run there on random activations, among them many that lie halfway between two 8-bit
integers, with as many rows as the case in question; the first known path with the same bits is the kernel's.
"""

from collections.abc import Callable

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.parts import join, split
from edgeqaf.qtensor import QTensor
from edgeqaf.report import compare_bits
from runtime_tests.onnx.emulate.operands import Matrix
from runtime_tests.onnx.emulate.paths import Case, Path, paths
from runtime_tests.trials import activations

SAMPLE = 256  # outputs that are computed again, of those that the runtime computes


def identify(run: Callable[[Floats], tuple[Floats, Floats]], q: QTensor, rows: int, threads: int) -> Path | None:
    """The path of the runtime's products of ``rows`` rows with ``q``; None if it is not known.

    run: the runtime's, float32 [rows, in] -> the same as the matrix product sees it, and the outputs [rows, out].
    """
    out, inputs = q.shape
    ends = np.arange(max(0, out - 4), out)  # outputs that are left over may go another way
    sample = np.union1d(np.linspace(0, out - 1, min(out, SAMPLE)).astype(int), ends)
    part = Matrix(join(q.grid, {name: values[sample] for name, values in split(q).items()}), sample)
    case = Case(rows, out, inputs, threads)
    trials = [(x, y[:, sample]) for x, y in map(run, activations(rows, inputs, q.grid.block))]
    for path in paths(q):
        if not any(compare_bits(path.product(part, x, case), y).any() for x, y in trials):
            return path
    return None
