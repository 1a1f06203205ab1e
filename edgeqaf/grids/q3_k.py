"""3-bit K-quant: blocks of 16 with a signed 6-bit scale, super-blocks of 256."""

from edgeqaf.grid import Grid, Levels, Zero

grid = Grid(
    name="q3_k",
    bits=3,
    lo=0,
    hi=7,
    centre=4,
    block=16,
    zero=Zero.NONE,
    source="ggml-quants.c dequantize_row_q3_K: y = (d * (sc - 32)) * (q - 4)",
    levels=Levels(256, scale=(-32, 31)),
)
