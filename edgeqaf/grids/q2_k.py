"""2-bit K-quant: blocks of 16 with a 4-bit scale and minimum, super-blocks of 256."""

from edgeqaf.grid import Grid, Levels, Zero

grid = Grid(
    name="q2_k",
    bits=2,
    lo=0,
    hi=3,
    block=16,
    zero=Zero.OFFSET,
    source="ggml-quants.c dequantize_row_q2_K: y = (d * sc) * q - (dmin * m)",
    levels=Levels(256, scale=(0, 15), zero=(0, 15)),
)
