"""5-bit K-quant: blocks of 32 with a 6-bit scale and minimum, super-blocks of 256."""

from edgeqaf.grid import Grid, Levels, Zero

grid = Grid(
    name="q5_k",
    bits=5,
    lo=0,
    hi=31,
    block=32,
    zero=Zero.OFFSET,
    source="ggml-quants.c dequantize_row_q5_K: y = (d * sc) * q - (dmin * m)",
    levels=Levels(256, scale=(0, 63), zero=(0, 63)),
)
