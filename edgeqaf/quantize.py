"""Quantize a float model: every linear weight of the decoder whose rows fit the grid, and its two ends if asked."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused, UsageError
from edgeqaf.grid import Grid
from edgeqaf.packing import WIDTHS
from edgeqaf.source import ENDS, FloatModel

GRID = "q4_0"  # the default


@dataclass(frozen=True)
class Plan:
    """What will be stored how: tensor name -> grid name or "float32".

    misfits: those whose rows are no multiple of their grid's block, and so stay float.
    """

    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str]
    misfits: list[str]
    bytes: int

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(name, shape, stored as), sorted."""
        for name in sorted(self.stored):
            yield name, " x ".join(map(str, self.shapes[name])), self.stored[name]


def plan(folder: Path, grid_name: str, ends: str | None = None) -> Plan:
    """Decide per tensor without reading weights; Refused when nothing would be quantized.

    ends: the grid of the embedding and of a head that has a tensor of its own; None: they stay float.
    """
    grid, end = _one_level(grid_name), None if ends is None else _one_level(ends)
    source = FloatModel(folder)
    shapes = {name: source.shape(name) for name in source}
    linears = {name: grid for name in source if source.is_linear(name)}
    wanted = linears | ({} if end is None else dict.fromkeys((name for name in ENDS if name in source), end))
    misfits = sorted(name for name, its in wanted.items() if not its.fits(shapes[name][1]))
    lost = [name for name in misfits if name in linears]
    if len(lost) == len(linears):
        which = f"; {lost[0]} has rows of {shapes[lost[0]][1]}" if lost else ""
        raise Refused(
            f"{folder}: no linear weight fits {grid.name}'s block of {grid.block}{which}",
            "choose a grid whose block divides the rows",
        )
    onto = {name: its for name, its in wanted.items() if name not in misfits}
    bits = {name: its.bits_per_weight + WIDTHS[its.bits] - its.bits for name, its in onto.items()}
    size = sum(math.prod(shape) * bits.get(name, 32) / 8 for name, shape in shapes.items())
    stored = {name: onto[name].name if name in onto else FLOAT32 for name in source}
    return Plan(shapes, stored, misfits, int(size))


def _one_level(name: str) -> Grid:
    """The grid of that name; refused where its scales are in two levels."""
    grid: Grid = plugins.find("grids", name)
    if grid.levels is not None:
        raise UsageError(
            f"{grid.name} keeps its scales in two levels, which only llama.cpp's quantizer chooses",
            "import a GGUF file of that type, or let llama.cpp make one: --quantizer llama.cpp --type Q4_K_M",
        )
    return grid


def quantize(folder: Path, out: Path, grid_name: str, quantizer: str, *, force: bool = False, **options: Any) -> QModel:
    """Write the base folder ``out`` and return it.

    options: what the quantizer takes beside the grid (`edgeqaf.quantizer.Quantizer.takes`).
    """
    chosen: Any = plugins.find("quantizers", quantizer)
    base: QModel = chosen.base(folder, out, {"grid": grid_name, **options}, force=force)
    return base
