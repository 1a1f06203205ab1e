"""5-bit blocks of 32 with a float16 minimum."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q5_1",
    bits=5,
    lo=0,
    hi=31,
    block=32,
    zero=Zero.OFFSET,
    source="ggml-quants.c dequantize_row_q5_1: y = q * d + m, d and m f16",
)
