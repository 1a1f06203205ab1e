"""How far from the exact product a kernel may be that rounds activations to 8 bits, whatever its order.

For one output, with weights w, activations x, and x' their rounded form:

- ``|x' - x| <= d / 2`` and a little for the division, d the block's largest magnitude / 127; where d itself is stored
  as float16, ``2^-11 |x|`` more, or ``127 * 2^-25`` where that is subnormal;
- float32 sums of n terms err by ``n 2^-24 / (1 - n 2^-24)`` of the sum of magnitudes, in any order, fused or not
  (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). n is the number of inputs and a few, which is more
  than any kernel rounds.

Magnitudes are ``|code * scale| + |zero|``, as kernels keep the two apart.
"""

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor, decode

UNIT = 2.0**-24


def envelope(q: QTensor, x: Floats) -> tuple[Floats, Floats]:
    """(product rounded to float32, distance that is allowed), both [m, out]; x float32 [m, in]."""
    wide = x.astype(np.float64)
    blocks = np.abs(wide).reshape(len(x), -1, q.grid.unit)
    step = (blocks.max(-1, keepdims=True) / 127).repeat(q.grid.unit, -1).reshape(wide.shape)
    rounding = step * (0.5 + 2.0**-10) + np.abs(wide) * 2.0**-10 + 127 * 2.0**-25
    magnitudes = _magnitudes(q).T
    terms = (x.shape[1] + 16) * UNIT
    sums = terms / (1 - terms) * ((np.abs(wide) + rounding) @ magnitudes)
    exact = wide @ decode(q).astype(np.float64).T
    slack = rounding @ magnitudes + sums
    return exact.astype(np.float32), (slack * (1 + UNIT) + np.abs(exact) * UNIT).astype(np.float32)


def _magnitudes(q: QTensor) -> NDArray[np.float64]:
    """float64 [out, in]."""
    scale = np.abs(q.scale.astype(np.float64)).repeat(q.grid.block, 1)
    found: NDArray[np.float64] = np.abs(q.codes.astype(np.float64) - q.grid.centre) * scale
    if q.grid.zero is Zero.OFFSET:
        found += np.abs(q.zero.astype(np.float64)).repeat(q.grid.block, 1)  # type: ignore[union-attr]
    return found
