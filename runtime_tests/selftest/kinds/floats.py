"""Tensors that are on no grid: norms, and an embedding in floats. No rung reads them back through a runtime."""

import numpy as np

from edgeqaf.digest import Floats
from runtime_tests.selftest.registry import Random, floats


@floats("norm")
def one_norm_weight_one_ulp_off(values: Floats, rng: Random) -> None:
    i = int(rng.integers(values.size))
    values[i] = np.nextafter(values[i], np.float32(np.inf))


@floats("norm")
def norm_weights_in_half_precision(values: Floats, rng: Random) -> None:
    values[:] = values.astype(np.float16).astype(np.float32)


@floats("embed_tokens")
def one_row_of_the_embedding_changed(values: Floats, rng: Random) -> None:
    row = int(rng.integers(len(values)))
    values[row] = np.nextafter(values[row], np.float32(np.inf))


@floats("embed_tokens")
def two_rows_of_the_embedding_swapped(values: Floats, rng: Random) -> None:
    one, other = rng.choice(len(values), 2, replace=False)
    values[[one, other]] = values[[other, one]]
