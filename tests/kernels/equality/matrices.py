"""Packed matrices to try kernels on, which kernels are tried and where they run, and equality of bits."""

import os
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from edgeqaf import plugins
from edgeqaf.grid import Grid, Zero
from edgeqaf.packed import Packed, pack

GRIDS = [plugins.find("grids", name) for name in plugins.names("grids")]
# No registered grid keeps an integer zero in 8 bits; the core promises to carry one.
GRIDS.append(Grid("zero_8", bits=8, lo=-128, hi=127, block=32, zero=Zero.CODE, source="ONNX DequantizeLinear, int8"))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FAMILY = "cuda" if INTERPRETED or torch.cuda.is_available() else "cpu"
DEVICE = "cuda" if FAMILY == "cuda" and not INTERPRETED else "cpu"
NAMES = [grid.name for grid in GRIDS]


def kernel(name: str) -> Any:
    """The kernel that stands in for the function ``name`` here."""
    return getattr(import_module(f"edgeqaf.kernels.{FAMILY}.{name}"), name)


def halves() -> torch.Tensor:
    """float32 [63488]: every finite float16, both zeros and the subnormals included."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return torch.from_numpy(every[np.isfinite(every)])


def some_halves() -> torch.Tensor:
    """Float16 values of every kind: zeros, least and largest, subnormal, powers of two, odd significands;."""
    chosen = [0.0, 2.0**-24, 3 * 2.0**-24, 1023 * 2.0**-24, 2.0**-14, 2.0**-14 * (1 + 2.0**-10), 0.1, 1 / 3, 1.0]
    chosen += [1 + 2.0**-10, 2.0 - 2.0**-10, 7.7, 2048.0, 65504.0]
    return torch.tensor([sign * x for x in chosen for sign in (1, -1)]).half().float()


def random_packed(grid: Grid, out: int, blocks: int, seed: int) -> Packed:
    """Any codes of the grid, with any finite float16 scales and zeros."""
    generator = torch.Generator().manual_seed(seed)
    every = halves()

    def drawn() -> torch.Tensor:
        return every[torch.randint(len(every), (out, blocks), generator=generator)]

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(grid.lo, grid.hi + 1, shape, generator=generator, dtype=torch.int16)

    packed = pack(codes(out, blocks * grid.block).to(torch.int8), grid)
    zero = {Zero.NONE: None, Zero.CODE: codes(out, blocks).float(), Zero.OFFSET: drawn()}[grid.zero]
    return Packed(grid, packed, drawn(), zero)


def there(packed: Packed) -> Packed:
    """The same matrix where kernels run."""
    zero = None if packed.zero is None else packed.zero.to(DEVICE)
    return replace(packed, codes=packed.codes.to(DEVICE), scale=packed.scale.to(DEVICE), zero=zero)


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors, wherever they are, hold the same bytes as the same type and shape."""
    whole = found.cpu().contiguous().view(torch.uint8), expected.cpu().contiguous().view(torch.uint8)
    return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(*whole)
