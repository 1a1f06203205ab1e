"""Kernels against their references: those for GPUs on a GPU or in Triton's interpreter, else those for CPUs.

By hand: ``TRITON_INTERPRET=1 pytest tests/kernels/equality``. The variable must stand before Triton is imported, so
`test_families.py` beside this folder starts a process that has it.
"""

from typing import Any

import numpy as np
import pytest
from matrices import INTERPRETED


@pytest.fixture(autouse=True, scope="session")
def bfloat16_rounds_to_nearest_even() -> None:
    """The interpreter cuts float32 off where a GPU rounds (PTX ISA, cvt.rn): let it round."""
    if not INTERPRETED:
        return
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cut = InterpreterBuilder.cast_impl

    def rounded(self: Any, value: Any, kind: Any) -> Any:
        if value.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            bits = value.data.view(np.uint32)
            assert not np.isnan(value.data).any()
            return TensorHandle(((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16), kind.scalar)
        return cut(self, value, kind)

    InterpreterBuilder.cast_impl = rounded
