"""The kernels for CPUs: loops over rows that numba compiles (LLVM), a band of rows to a thread.

Written as torch operations a step of `codes` passes some twenty times over a tile, and the time goes to those passes.
Compiled, a weight is read once, stays in registers, and is written once. LLVM makes vector instructions of the inner
loops, over the bytes of a block: their length is a constant to it, they index slices from zero, and integers have the
width that they need, not Python's (`edgeqaf.compiled`).

Threads are torch's number of them, the caller's own among them. They are our own and wait asleep: torch's belong to
OpenMP, and a second OpenMP's would spin beside them.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch

LEAST = 2**16  # weights that are worth a thread


def over_rows(kernel: Callable[..., None], rows: int, inputs: int, *arguments: Any, band: int = 1) -> None:
    """``kernel(*arguments, first, last)`` on ranges of rows that cover them all, cut at multiples of ``band``."""
    bands = -(-rows // band)
    threads = max(1, min(torch.get_num_threads(), bands, rows * inputs // LEAST))
    cuts = [min(rows, bands * i // threads * band) for i in range(threads + 1)]
    ranges = list(pairwise(cuts))
    others = [_pool(threads).submit(kernel, *arguments, *part) for part in ranges[1:]]
    kernel(*arguments, *ranges[0])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "edgeqaf-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
