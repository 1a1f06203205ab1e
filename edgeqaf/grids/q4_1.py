"""4-bit blocks of 32 with a float16 minimum: the carrier of block-wise offsets."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q4_1",
    bits=4,
    lo=0,
    hi=15,
    block=32,
    zero=Zero.OFFSET,
    source="ggml-quants.c dequantize_row_q4_1: y = q * d + m, d and m f16",
)
