"""How CPU kernels are compiled and shared out: over rows, on threads, with and without a place for the cache."""

from typing import Any

import numpy as np
import pytest
import torch

from edgeqaf.compiled import compiled
from edgeqaf.kernels.cpu import LEAST, over_rows


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("rows", "inputs", "band"), [(1, 32, 1), (7, LEAST, 1), (700, LEAST // 64, 256), (64, 32, 256)]
)
def test_rows_are_covered_once_and_cut_at_bands(rows: int, inputs: int, band: int, threads: int) -> None:
    seen: list[tuple[int, int]] = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        over_rows(lambda first, last: seen.append((first, last)), rows, inputs, band=band)
    finally:
        torch.set_num_threads(before)
    assert [row for first, last in sorted(seen) for row in range(first, last)] == list(range(rows))
    assert all(first % band == 0 for first, _ in seen)
    assert len(seen) <= max(1, min(threads, -(-rows // band), rows * inputs // LEAST))


def test_what_fails_on_a_thread_fails_for_the_caller() -> None:
    def kernel(first: int, last: int) -> None:
        if first:
            raise ValueError(f"row {first}")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="row 2"):
            over_rows(kernel, 4, LEAST)
    finally:
        torch.set_num_threads(before)


def test_without_a_place_for_the_cache_it_compiles_all_the_same() -> None:
    """numba keeps nothing of a function that no file holds, and says so by an error."""
    space: dict[str, Any] = {}
    exec("def kernel(x, first, last):\n    x[first:last] += 1", space)
    x = np.zeros(4)
    compiled(space["kernel"])(x, 1, 3)
    assert x.tolist() == [0, 1, 1, 0]


def test_products_are_not_contracted() -> None:
    """a * b + c with two roundings and with one, where they differ."""

    @compiled
    def kernel(a: Any, out: Any, first: int, last: int) -> None:
        for i in range(first, last):
            out[i] = a[i] * a[i] + np.float32(-1)

    a = np.full(64, 1 + 2.0**-12, np.float32)
    out = np.empty_like(a)
    kernel(a, out, 0, 64)
    assert set(out.tolist()) == {2.0**-11}  # in one operation: 2^-11 + 2^-24
