"""The second term of a grid with a float zero, ``blocksum(x) @ (zero + middle * scale)``, as ONNX operators compute it.

The sum of a block is ReduceSum's, in eight lanes; the product is a plain float MatMul, whose kernel is another for
weights that the graph computes than for weights that are constant, and packed while loading.
"""

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.qtensor import QTensor

LANES = 8


def middle(q: QTensor) -> int:
    """The zero point of the first term: the middle of the codes."""
    return (q.grid.lo + q.grid.hi + 1) // 2


def terms(q: QTensor) -> Floats:
    """float32 [out, in / block]."""
    found: Floats = q.zero + np.float32(middle(q)) * q.scale
    return found


def sums(x: Floats, block: int) -> Floats:
    """float32 [m, in] -> [m, in / block]: every eighth input in a lane, the lanes added by halves."""
    held = x.reshape(len(x), -1, block // LANES, LANES)
    lanes = held[:, :, 0]
    for i in range(1, held.shape[2]):
        lanes = lanes + held[:, :, i]
    four = lanes[..., :4] + lanes[..., 4:]
    two = four[..., :2] + four[..., 2:]
    found: Floats = two[..., 0] + two[..., 1]
    return found
