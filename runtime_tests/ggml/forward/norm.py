"""RMSNorm: squares rounded to float32 and added in float64, in the order of the row, on every processor.

The mean becomes a float32 before epsilon is added, and the factor is ``1 / sqrt``, two roundings. x * factor is rounded
before the weight multiplies it, whether ggml does the two products in one operation or in two.
"""

# mypy: disallow-untyped-defs=False, allow-untyped-calls

import numpy as np

from edgeqaf.compiled import compiled
from edgeqaf.digest import Floats


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """float32 [m, n] by weight [n]."""
    y = np.empty_like(x)
    _rows(x, weight, np.float32(epsilon), y)
    return y


@compiled
def _rows(x, weight, epsilon, y):
    for i in range(len(x)):
        total = np.float64(0)
        for k in range(x.shape[1]):
            total += np.float64(x[i, k] * x[i, k])
        mean = np.float32(total / x.shape[1])
        factor = np.float32(1) / np.sqrt(mean + epsilon)
        for k in range(x.shape[1]):
            y[i, k] = x[i, k] * factor * weight[k]
