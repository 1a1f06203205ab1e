"""Codes that are not those of the model."""

import numpy as np

from edgeqaf.grid import Grid
from runtime_tests.selftest.registry import Parts, Random, matrix

LOST = 1e-5  # share of codes whose last bit is lost


@matrix()
def one_code_off_by_one(parts: Parts, grid: Grid, rng: Random) -> None:
    _step(parts, grid, *_place(parts, rng))


@matrix()
def one_code_at_the_border_of_a_block_off_by_one(parts: Parts, grid: Grid, rng: Random) -> None:
    row, column = _place(parts, rng)
    _step(parts, grid, row, column // grid.block * grid.block + grid.block - 1)


@matrix()
def one_sign_flipped(parts: Parts, grid: Grid, rng: Random) -> bool:
    """One code mirrored at the middle of its grid."""
    codes = parts["codes"]
    mirrored = (2 * grid.centre or grid.lo + grid.hi) - codes.astype(int)
    able = np.argwhere((mirrored != codes) & (mirrored >= grid.lo) & (mirrored <= grid.hi))
    if not len(able):
        return False
    row, column = able[rng.integers(len(able))]
    codes[row, column] = mirrored[row, column]
    return True


@matrix()
def low_bits_of_a_few_codes_lost(parts: Parts, grid: Grid, rng: Random) -> None:
    """As where adapter bits are lost: one code in a hundred thousand, one at least."""
    flat = parts["codes"].reshape(-1)
    chosen = rng.choice(flat.size, max(1, round(flat.size * LOST)), replace=False)
    flipped = grid.lo + ((flat[chosen].astype(int) - grid.lo) ^ 1)
    flat[chosen] = np.where(flipped <= grid.hi, flipped, flat[chosen] - 1)


@matrix()
def one_adapter_entry_of_the_wrong_sign(parts: Parts, grid: Grid, rng: Random) -> bool:
    """A ternary factor's entry signed wrongly before LoTA's fold: what the real adapter then folds otherwise."""
    import torch

    from edgeqaf.adapters.lota import Lota, LotaOptions
    from edgeqaf.packed import Packed
    from edgeqaf.qtensor import QTensor, fold

    codes, (out, inputs) = torch.from_numpy(parts["codes"]), parts["codes"].shape
    scale = torch.ones(out, inputs // grid.block)
    drawn = torch.Generator().manual_seed(int(rng.integers(2**31)))
    adapter = Lota(Packed(grid, codes, scale, None), LotaOptions.model_validate({}), drawn)
    with torch.no_grad():
        adapter.b.copy_(torch.randint(-1, 2, adapter.b.shape, generator=drawn))
        moved = torch.sign(adapter.b @ adapter.a) * ((adapter.b @ adapter.a).abs() > adapter.omega())
        base = QTensor(grid, (codes - moved).clamp(grid.lo, grid.hi), scale)
        merged = fold(base, adapter.delta(base, slice(None))).codes
        row = int(rng.integers(out))
        entry = adapter.b[row, int(rng.integers(adapter.b.shape[1]))]
        entry.copy_(-entry if entry else torch.tensor(1.0))
        adapter.fixed_omega = adapter.omega()
        wrong = fold(base, adapter.delta(base, slice(None))).codes
    parts["codes"][:] = (codes + wrong - merged).clamp(grid.lo, grid.hi).to(torch.int8).numpy()
    return bool((wrong != merged).any())


@matrix()
def one_row_zero(parts: Parts, grid: Grid, rng: Random) -> None:
    row = rng.integers(len(parts["codes"]))
    for name, values in parts.items():
        if name != "codes" and not (name == "zero" and values.dtype == np.int8):
            values[row] = 0


@matrix()
def two_rows_swapped(parts: Parts, grid: Grid, rng: Random) -> None:
    one, other = rng.choice(len(parts["codes"]), 2, replace=False)
    for values in parts.values():
        values[[one, other]] = values[[other, one]]


@matrix()
def last_block_of_each_row_dropped(parts: Parts, grid: Grid, rng: Random) -> None:
    """Its scales, and what is added, zero."""
    for name in ("scale", "scales", "mins", "zero"):
        if name in parts and not (name == "zero" and parts[name].dtype == np.int8):
            parts[name][:, -1] = 0


def _place(parts: Parts, rng: Random) -> tuple[int, int]:
    out, inputs = parts["codes"].shape
    return int(rng.integers(out)), int(rng.integers(inputs))


def _step(parts: Parts, grid: Grid, row: int, column: int) -> None:
    parts["codes"][row, column] += 1 if parts["codes"][row, column] < grid.hi else -1
