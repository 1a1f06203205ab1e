"""How far from the exact product a kernel may be whose order is not known.

For one output, with weights w, activations x, and x' their rounded form where a kernel rounds them:

- float32 sums of n terms err by ``n 2^-24 / (1 - n 2^-24)`` of the sum of magnitudes, in any order, fused or not
  (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). n is the number of inputs and a few, which is more
  than any kernel rounds;
- ``|x' - x| <= d / 2`` and a little for the division, d the row's largest magnitude / 127: no block has a larger one.

Magnitudes are of what kernels add in any written form, zero points and the middle of the codes apart from the codes:
``(|code - z| + 2 |z|) |scale| + |zero|``, codes and z unsigned as some kernels have them.
"""

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor, decode
from runtime_tests.onnx.emulate.offsets import middle

UNIT = 2.0**-24
FEW = 64  # roundings of weights, block sums and last sums


def envelope(q: QTensor, x: Floats, int8: bool) -> tuple[Floats, Floats]:
    """(product rounded to float32, distance that is allowed), both [m, out]; x float32 [m, in].

    int8: whether the kernel may round activations to 8 bits, a block or a row at a time.
    """
    wide, magnitudes = x.astype(np.float64), _magnitudes(q).T
    rounding = np.zeros_like(wide)
    if int8:
        rounding += np.abs(wide).max(-1, keepdims=True) / 127 * (0.5 + 2.0**-10)
    terms = (x.shape[1] + FEW) * UNIT
    sums = terms / (1 - terms) * ((np.abs(wide) + rounding) @ magnitudes)
    exact = wide @ decode(q).astype(np.float64).T
    slack = rounding @ np.abs(decode(q)).astype(np.float64).T + sums
    return exact.astype(np.float32), np.nextafter((slack + np.abs(exact) * UNIT).astype(np.float32), np.float32(np.inf))


def _magnitudes(q: QTensor) -> Floats:
    """float64 [out, in]."""
    grid = q.grid
    blocks = q.codes.reshape(*q.scale.shape, -1).astype(np.float64)
    point = {Zero.NONE: grid.centre, Zero.CODE: q.zero, Zero.OFFSET: middle(q)}[grid.zero]
    point = np.broadcast_to(np.asarray(point, np.float64), q.scale.shape)[..., None]
    found = (np.abs(blocks - point) + 2 * np.abs(point - min(grid.lo, 0))) * np.abs(q.scale)[..., None]
    if grid.zero is Zero.OFFSET:
        assert q.zero is not None
        found = found + np.abs(q.zero)[..., None]
    magnitudes: Floats = found.reshape(q.shape)
    return magnitudes
