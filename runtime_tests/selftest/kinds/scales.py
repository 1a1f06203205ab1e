"""Scales and zeros that are not those of the model. An ulp is one of the type that they are stored in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.grid import Grid
from runtime_tests.selftest.registry import Parts, Random, matrix


@matrix()
def one_scale_one_ulp_off(parts: Parts, grid: Grid, rng: Random) -> None:
    scale = _scale(parts)
    row, block = (int(rng.integers(n)) for n in scale.shape)
    scale[row, block] = np.nextafter(scale[row, block], np.float16(np.inf))


@matrix()
def every_scale_one_ulp_off(parts: Parts, grid: Grid, rng: Random) -> None:
    scale = _scale(parts)
    scale[:] = np.nextafter(scale, np.float16(np.inf))


@matrix()
def every_scale_two_per_cent_off(parts: Parts, grid: Grid, rng: Random) -> None:
    scale = _scale(parts)
    scale[:] = (scale.astype(np.float32) * np.float32(1.02)).astype(np.float16)


@matrix()
def scales_of_two_blocks_swapped(parts: Parts, grid: Grid, rng: Random) -> bool:
    scale = parts.get("scales", parts.get("scale"))
    assert scale is not None
    if scale.shape[1] < 2:
        return False
    row, (one, other) = int(rng.integers(len(scale))), rng.choice(scale.shape[1], 2, replace=False)
    scale[row, [one, other]] = scale[row, [other, one]]
    return True


@matrix()
def zeros_of_one_row_off_by_one(parts: Parts, grid: Grid, rng: Random) -> bool:
    """An integer zero point by one, a float zero by one unit in the last place."""
    zero = parts.get("zero", parts.get("dmin"))
    if zero is None:
        return False
    row = int(rng.integers(len(zero)))
    if zero.dtype == np.int8:
        zero[row] += np.where(zero[row] < grid.hi, 1, -1).astype(np.int8)
    else:
        zero[row] = np.nextafter(zero[row], np.float16(np.inf))
    return True


@matrix()
def one_block_scale_of_a_super_block_off_by_one(parts: Parts, grid: Grid, rng: Random) -> bool:
    return _second_level(parts, "scales", grid.levels.scale if grid.levels else None, rng)


@matrix()
def one_block_minimum_of_a_super_block_off_by_one(parts: Parts, grid: Grid, rng: Random) -> bool:
    return _second_level(parts, "mins", grid.levels.zero if grid.levels else None, rng)


def _second_level(parts: Parts, name: str, span: tuple[int, int] | None, rng: Random) -> bool:
    if name not in parts or span is None:
        return False
    row, block = (int(rng.integers(n)) for n in parts[name].shape)
    parts[name][row, block] += 1 if parts[name][row, block] < span[1] else -1
    return True


def _scale(parts: Parts) -> NDArray[Any]:
    return parts["d"] if "d" in parts else parts["scale"]
