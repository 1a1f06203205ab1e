"""6-bit K-quant: blocks of 16 with a signed 8-bit scale, super-blocks of 256; the rest of a Q4_K_M file."""

from edgeqaf.grid import Grid, Levels, Zero

grid = Grid(
    name="q6_k",
    bits=6,
    lo=0,
    hi=63,
    centre=32,
    block=16,
    zero=Zero.NONE,
    source="ggml-quants.c dequantize_row_q6_K: y = (d * sc) * (q - 32)",
    levels=Levels(256, scale=(-128, 127)),
)
