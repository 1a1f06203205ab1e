"""Quantize a float model: every linear weight of the decoder whose rows fit the grid; the rest stays float."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused, UsageError
from edgeqaf.grid import Grid
from edgeqaf.packing import WIDTHS
from edgeqaf.source import FloatModel

GRID = "q4_0"  # the default


@dataclass(frozen=True)
class Plan:
    """What will be stored how: tensor name -> grid name or "float32"."""

    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str]
    misfits: list[str]
    bytes: int

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(name, shape, stored as), sorted."""
        for name in sorted(self.stored):
            yield name, " x ".join(map(str, self.shapes[name])), self.stored[name]


def plan(folder: Path, grid_name: str) -> Plan:
    """Decide per tensor without reading weights; Refused when nothing would be quantized."""
    grid: Grid = plugins.find("grids", grid_name)
    if grid.levels is not None:
        raise UsageError(
            f"{grid.name} keeps its scales in two levels, which only llama.cpp's quantizer chooses",
            "import a GGUF file of that type, or let llama.cpp make one: --quantizer llama.cpp --type Q4_K_M",
        )
    source = FloatModel(folder)
    shapes = {name: source.shape(name) for name in source}
    linear = {name for name in source if source.is_linear(name)}
    misfits = sorted(name for name in linear if not grid.fits(shapes[name][1]))
    if not linear - set(misfits):
        which = f"; {misfits[0]} has rows of {shapes[misfits[0]][1]}" if misfits else ""
        raise Refused(
            f"{folder}: no linear weight fits {grid.name}'s block of {grid.block}{which}",
            "choose a grid whose block divides the rows",
        )
    stored = {name: grid.name if name in linear and name not in misfits else "float32" for name in source}
    bits = {grid.name: grid.bits_per_weight + WIDTHS[grid.bits] - grid.bits, "float32": 32}
    size = sum(math.prod(shape) * bits[stored[name]] / 8 for name, shape in shapes.items())
    return Plan(shapes, stored, misfits, int(size))


def quantize(folder: Path, out: Path, grid_name: str, quantizer: str, *, force: bool = False, **options: Any) -> QModel:
    """Write the base folder ``out`` and return it.

    options: what the quantizer takes beside the grid (`edgeqaf.quantizer.Quantizer.takes`).
    """
    chosen: Any = plugins.find("quantizers", quantizer)
    base: QModel = chosen.base(folder, out, {"grid": grid_name, **options}, force=force)
    return base
