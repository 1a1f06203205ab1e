"""The kernels for NVIDIA GPUs: Triton programs.

Triton comes with torch's CUDA builds and is imported when the first tensor on a GPU appears. With
``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs the kernels on any device, line by line in numpy:
so the tests hold them against their references on machines without a GPU.

Every operation is one that IEEE 754 rounds in one way only: +, *, floor, casts to nearest even. They are compiled
without contraction (`EXACT`). `fold_product` takes its sum in integers, which know no order. No kernel uses atomics.
"""

from typing import Any

EXACT: dict[str, Any] = {"enable_fp_fusion": False}  # launch options of every kernel that computes in floats
