"""llama.cpp's own quantizer: whole models, in any of its file types, with scales of two levels (``--type Q4_K_M``).

It makes a GGUF file, which is then imported (`edgeqaf.imported.quantize_by_llama_cpp`).
"""

from typing import NoReturn

from edgeqaf.digest import Floats
from edgeqaf.errors import UsageError
from edgeqaf.grid import Grid


def quantize(weights: Floats, grid: Grid) -> NoReturn:
    """Refuse: it takes no single matrix."""
    raise UsageError(
        f"llama.cpp quantizes whole models, not one matrix of {weights.shape[0]} x {weights.shape[1]} onto {grid.name}",
        "use it as edgeqaf quantize MODEL --quantizer llama.cpp --type Q4_K_M",
    )
