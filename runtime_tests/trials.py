"""Activations that tell kernels apart: what each rounds, and in which order it adds, shows on them."""

import numpy as np

from edgeqaf.digest import Floats

ENOUGH = 64  # rows in all, at least


def activations(rows: int, inputs: int, block: int) -> list[Floats]:
    """float32 [rows, in] each: normal ones, and halves of the step that 8 bits have, both with blocks of many sizes."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(-(-ENOUGH // (2 * rows))):
        size = np.exp(rng.normal(0, 1, (rows, inputs // block))).astype(np.float32).repeat(block, 1)
        halves = (rng.integers(-127, 127, (rows, inputs)) + np.float32(0.5)) * size / np.float32(127)
        halves[:, ::block] = size[:, ::block]  # the largest of its block
        found += [rng.normal(0, 1, (rows, inputs)).astype(np.float32) * size, halves.astype(np.float32)]
    return found
