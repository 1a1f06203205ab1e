"""Kernels: functions of the training step a second time, for a GPU, with the same results bit for bit.

A kernel is a file named after the function that it stands in for, with a function of that name and signature;
`accelerated` marks the reference and picks one of the two by where its first argument lies. No caller asks for a
device. The kernels are Triton programs. Triton comes with torch's CUDA builds and is imported when the first tensor
on a GPU appears; where it is missing or the GPU too old, the references run there too, slower.

What makes bits equal:

- Every operation that a kernel takes from its reference is one that IEEE 754 rounds in one way only: +, *, floor,
  casts to nearest even. Kernels are compiled without contraction (`EXACT`): no a * b + c becomes one operation.
  Quotients, roots and logarithms stay with torch, on vectors.
- Codes, remainders and noise are integers; the noise follows from a position (`edgeqaf.noise`), not from a thread.
- Sums are where orders differ. `fold_product` takes its sum in integers, which know no order. `squares` takes it in
  float32, in an order fixed by the matrix's shape alone: the same GPU gives the same bits again, and another
  order differs from it by a bounded amount (its docstring). No kernel uses atomics.

With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs the kernels on any device, line by line
in numpy: so the tests hold them against their references on machines without a GPU.
"""

import os
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

LEAST = 8, 0  # compute capability, from which matrix units multiply int8
EXACT: dict[str, Any] = {"enable_fp_fusion": False}  # launch options of every kernel that computes in floats


def accelerated(reference: Callable[P, T]) -> Callable[P, T]:
    """The function itself, or on a GPU the kernel ``edgeqaf.kernels.NAME.NAME``.

    The first argument says where: a tensor, or whatever else has a ``device``. ``__wrapped__`` is the reference.
    """
    name = reference.__name__

    @wraps(reference)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> T:
        where: Any = args[0]
        if runs(where.device.type):
            kernel: Callable[P, T] = getattr(import_module(f"edgeqaf.kernels.{name}"), name)
            return kernel(*args, **kwargs)
        return reference(*args, **kwargs)

    return chosen


@cache
def runs(device: str) -> bool:
    """Whether kernels run on this type of device, here: on NVIDIA GPUs from compute capability 8.0 on."""
    if find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    return device == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() >= LEAST
