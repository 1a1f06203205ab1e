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
    lanes = _lanes(x, block, LANES)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    found: Floats = lanes[..., 0]
    return found


def sums_arm(x: Floats, block: int) -> Floats:
    """Every eighth input in a lane, too, of two registers; these are added, then their neighbours."""
    lanes = _lanes(x, block, LANES)
    lanes = lanes[..., : LANES // 2] + lanes[..., LANES // 2 :]
    while lanes.shape[-1] > 1:
        lanes = lanes[..., 0::2] + lanes[..., 1::2]
    found: Floats = lanes[..., 0]
    return found


def _lanes(x: Floats, block: int, count: int) -> Floats:
    """float32 [m, in / block, count]: the sums of inputs so many apart."""
    held = x.reshape(len(x), -1, block // count, count)
    lanes: Floats = held[:, :, 0]
    for i in range(1, held.shape[2]):
        lanes = lanes + held[:, :, i]
    return lanes
