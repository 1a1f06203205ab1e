"""Kernels: functions of the training step a second time, for a kind of device, with the same results bit for bit.

A kernel is a file named after the function that it stands in for, with a function of that name and signature, in
the folder of its device: ``cpu`` (numba) or ``cuda`` (Triton). `accelerated` marks the reference and picks by where
its first argument lies; no caller asks for a device. Without the compiler, or on an old GPU, the references run.

What makes bits equal:

- A kernel's operations are its reference's: +, *, floor, casts to nearest even, each rounded by itself; no a * b + c
  becomes one operation. Quotients, roots and logarithms stay with torch, on vectors.
- Codes, remainders and noise are integers; the noise follows from a position (`edgeqaf.noise`), not from a thread.
- Sums are where orders differ. In `fold_product` no sum rounds, or it is taken again where its rounding could tell.
  `squares` takes sums in float32, in an order fixed by the matrix's shape alone: the same device gives the same bits
  again, on any number of threads, and another order differs by a bounded amount (its docstrings).
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


def accelerated(reference: Callable[P, T]) -> Callable[P, T]:
    """The function itself, or the kernel ``edgeqaf.kernels.FAMILY.NAME.NAME`` where a family runs.

    The first argument says where: a tensor, or whatever else has a ``device``. ``__wrapped__`` is the reference.
    """
    name = reference.__name__

    @wraps(reference)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> T:
        where: Any = args[0]
        folder = family(where.device.type)
        if folder is None:
            return reference(*args, **kwargs)
        kernel: Callable[P, T] = getattr(import_module(f"edgeqaf.kernels.{folder}.{name}"), name)
        return kernel(*args, **kwargs)

    return chosen


@cache
def family(device: str) -> str | None:
    """The folder of the kernels that run on this type of device, here; None where the references do."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cuda" if find_spec("triton") else None
    if device == "cpu":
        return "cpu" if find_spec("numba") else None
    capable = device == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() >= LEAST
    return "cuda" if capable and find_spec("triton") else None
