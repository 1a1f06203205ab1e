"""Tensors to try laws on: every grid of the registry, an 8-bit one with an integer zero, every float16."""

from dataclasses import replace

import gguf
import numpy as np
import torch

from edgeqaf import plugins
from edgeqaf.grid import Grid, Zero
from edgeqaf.qtensor import QTensor, Supers

GRIDS = {name: plugins.find("grids", name) for name in plugins.names("grids")}
ZERO_4 = GRIDS["uint4"]
# No registered grid keeps an integer zero in 8 bits; the core promises to carry one.
ZERO_8 = Grid("zero_8", bits=8, lo=-128, hi=127, block=32, zero=Zero.CODE, source="ONNX DequantizeLinear, int8")
EVERY = [*GRIDS.values(), ZERO_8]
ALL = [grid for grid in EVERY if grid.levels is None]
TWO_LEVEL = [grid for grid in EVERY if grid.levels is not None]
# By hand: a ggml type may be spelled like a grid and be another format (q2_0, with blocks of 64).
GGML = {
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def all_halves() -> np.ndarray:
    """Every finite float16 as float32, both zeros included: [63488]."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return halves[np.isfinite(halves)]


def all_codes(grid: Grid) -> np.ndarray:
    """Every code of ``grid``, repeated to whole blocks: int8 [n], n a multiple of the block."""
    codes = np.arange(grid.lo, grid.hi + 1)
    return np.resize(codes, -(-len(codes) // grid.block) * grid.block).astype(np.int8)


def random_tensor(grid: Grid, seed: int = 0, out: int = 4, blocks: int = 3) -> QTensor:
    """Any codes, any finite float16 scales (both signs, subnormals) and zeros: [out, blocks * grid.unit]."""
    rng = np.random.default_rng(seed)
    halves = all_halves()
    codes = rng.integers(grid.lo, grid.hi, (out, blocks * grid.unit), endpoint=True).astype(np.int8)
    if grid.levels is not None:
        return two_level(grid, codes, rng)
    zeros = {
        Zero.NONE: None,
        Zero.CODE: rng.integers(grid.lo, grid.hi, (out, blocks), endpoint=True).astype(np.float32),
        Zero.OFFSET: rng.choice(halves, (out, blocks)),
    }
    return QTensor(grid, codes, rng.choice(halves, (out, blocks)), zeros[grid.zero])


def two_level(grid: Grid, codes: np.ndarray, rng: np.random.Generator) -> QTensor:
    """A tensor of these codes, under random second levels."""
    out, inputs = codes.shape

    def level(span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        integers = rng.integers(*span, (out, inputs // grid.block), endpoint=True).astype(np.int8)
        return rng.choice(all_halves(), (out, inputs // grid.levels.block)), integers

    supers = Supers(*level(grid.levels.scale), *(level(grid.levels.zero) if grid.levels.zero else ()))
    return QTensor(grid, codes, supers.scale, supers.zero, supers)


def to_torch(q: QTensor) -> QTensor:
    """The same tensor on torch."""
    zero = None if q.zero is None else torch.from_numpy(q.zero.copy())
    return replace(q, codes=torch.from_numpy(q.codes.copy()), scale=torch.from_numpy(q.scale.copy()), zero=zero)


def bits(x: np.ndarray | torch.Tensor) -> np.ndarray:
    """The bit patterns of float32 values; integers as they are."""
    array = np.ascontiguousarray(x.numpy() if isinstance(x, torch.Tensor) else x)
    return array.view(np.uint32) if array.dtype == np.float32 else array
