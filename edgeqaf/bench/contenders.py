"""The methods that the bench compares, by the name its tables give them.

A contender runs on every grid of its families. What is not quantized (`full`) has the family of floats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeqaf.bench.cell import FLOAT
from edgeqaf.errors import UsageError

# family -> its grids, most bits first
FAMILIES = {
    "float": (FLOAT,),
    "symmetric": ("q4_0", "q3_0", "q2_0"),
    "offset": ("q4_1", "q3_1", "q2_1"),
    "integer": ("uint4", "uint3", "uint2"),
}
UNTUNED, FULL, FULL_LINEARS = "untuned", "full", "full-linears"


@dataclass(frozen=True)
class Contender:
    """title: in the tables. method: its registry name, or None for what is no method of the product.

    options: its own, learning rates apart. answers: whether an artifact of it answers questions too.
    residual: whether it begins from what rounding the float model left over (the option of this name).
    """

    title: str
    method: str | None
    families: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    answers: bool = False
    residual: bool = False

    @property
    def grids(self) -> tuple[str, ...]:
        return tuple(grid for family in self.families for grid in FAMILIES[family])


BLOCKS = ("symmetric", "offset", "integer")
CONTENDERS = {
    UNTUNED: Contender("untuned", None, ("float", *BLOCKS), answers=True),
    FULL: Contender("full float fine-tune", None, ("float",)),
    FULL_LINEARS: Contender("full float fine-tune, linear weights only", None, ("float",)),
    "lora": Contender("LoRA r16", "lora", ("symmetric", "offset"), {"rank": 16}),
    "q_bara": Contender("Q-BaRA r32", "q_bara", ("symmetric",), {"rank": 32, "pool": 2}),
    "codes": Contender("`codes`", "codes", BLOCKS, answers=True),
    "codes-residual": Contender("`codes` from residuals", "codes", ("symmetric",), answers=True, residual=True),
    "lowrank": Contender("`lowrank` r16", "lowrank", ("symmetric", "offset"), {"rank": 16}, answers=True),
    "lowrank-residual": Contender(
        "`lowrank` r16 from residuals", "lowrank", ("symmetric",), {"rank": 16}, answers=True, residual=True
    ),
    "lowrank+scale": Contender(
        "`lowrank+scale` r16 from residuals", "lowrank+scale", ("symmetric",), {"rank": 16}, answers=True, residual=True
    ),
    "scale": Contender("`scale`", "scale", ("symmetric", "offset")),
    "lota": Contender("LoTA r16, move rate", "lota", ("symmetric", "offset"), {"rank": 16}),
    "lota-offset": Contender("LoTA r16, move rate, offset", "lota", ("offset",), {"rank": 16, "offset": "paper"}),
    "lota-paper": Contender("LoTA r16 as published", "lota", ("symmetric", "offset"), {"rank": 16, "paper": True}),
    "lota-paper-offset": Contender(
        "LoTA r16 as published, offset", "lota", ("offset",), {"rank": 16, "paper": True, "offset": "paper"}
    ),
    "lota-paper-offset-code": Contender(
        "LoTA r16 as published, offset of the code", "lota", ("offset",), {"rank": 16, "paper": True, "offset": "code"}
    ),
    "qa_hira": Contender("QA-HiRA", "qa_hira", ("offset", "integer")),
    "qa_lora": Contender("QA-LoRA r16", "qa_lora", ("offset", "integer"), {"rank": 16}),
}


def family(grid: str) -> str:
    """The family of a grid; UsageError for a grid that the bench has no contender for."""
    found = [name for name, grids in FAMILIES.items() if grid in grids]
    if not found:
        known = ", ".join(grid for grids in FAMILIES.values() for grid in grids)
        raise UsageError(f"the bench has no grid {grid!r}", f"known: {known}")
    return found[0]


def bits(grid: str) -> int | None:
    """4, 3 or 2; None for floats."""
    name = family(grid)
    return None if name == "float" else 4 - FAMILIES[name].index(grid)
