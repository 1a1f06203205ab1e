"""Float tensors as GGUF stores them: float32, float16 or bfloat16, widened to float32 without loss."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from exporters.gguf.layouts import BF16, F16, F32

TYPES = {F32: np.dtype("<f4"), F16: np.dtype("<f2"), BF16: np.dtype(ml_dtypes.bfloat16)}


def widen(raw: NDArray[np.uint8], kind: int, shape: tuple[int, ...], name: str) -> Floats:
    """The values of a tensor; Refused where one is not finite."""
    values: Floats = raw.view(TYPES[kind]).reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        index = [int(i[0]) for i in np.nonzero(~np.isfinite(values))]
        raise Refused(
            f"{name}{index} is {values[tuple(index)]}",
            "the file was damaged or not made by this exporter; export or fetch it again",
        )
    return values


def narrow(values: Floats, kind: int, name: str) -> NDArray[np.generic]:
    """The inverse of `widen`; Refused where ``kind`` cannot hold a value."""
    stored: NDArray[np.generic] = values.astype(TYPES[kind])
    if kind != F32 and (stored.astype(np.float32).view(np.uint32) != values.view(np.uint32)).any():
        raise Refused(
            f"{name} is stored as {TYPES[kind].name}, which does not hold its values", "export without a source file"
        )
    return stored
