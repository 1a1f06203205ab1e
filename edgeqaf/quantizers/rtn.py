"""Round to nearest, with a search for the scale of each block (`edgeqaf.rounding`)."""

from edgeqaf.digest import Floats
from edgeqaf.grid import Grid
from edgeqaf.qtensor import QTensor
from edgeqaf.quantizer import EachMatrix
from edgeqaf.rounding import quantize as rounded


def quantize(weights: Floats, grid: Grid) -> QTensor:
    """float32 [out, in] -> QTensor on ``grid``; raises Refused where a scale would overflow float16."""
    return rounded(weights, grid)


quantizer = EachMatrix("rtn", quantize)
