"""Round to nearest under the scale that puts a block's largest weight at the end of the grid, as ggml does.

Nothing is searched: it is the fastest, and on q4_0, q4_1, q5_0, q5_1 and q8_0 the codes that llama.cpp's own quantizer
chooses, except where the rounding of a scale to float16 moves a weight across the middle between two codes.
"""

from edgeqaf.digest import Floats
from edgeqaf.grid import Grid
from edgeqaf.qtensor import QTensor
from edgeqaf.quantizer import EachMatrix
from edgeqaf.rounding import quantize as rounded


def quantize(weights: Floats, grid: Grid) -> QTensor:
    """float32 [out, in] -> QTensor on ``grid``; raises Refused where a scale would overflow float16."""
    return rounded(weights, grid, search=False)


quantizer = EachMatrix("absmax", quantize)
