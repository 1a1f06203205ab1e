"""Ternary blocks of 256 (-1, 0, 1 under one scale), four to a byte: BitNet's weights."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="tq2_0",
    bits=2,
    lo=0,
    hi=2,
    centre=1,
    block=256,
    zero=Zero.NONE,
    source="ggml-quants.c dequantize_row_tq2_0: y = (q - 1) * d, d f16",
)
