"""Symmetric 4-bit blocks of 32: the default for phones and laptops (repacked kernels exist everywhere)."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q4_0",
    bits=4,
    lo=0,
    hi=15,
    centre=8,
    block=32,
    zero=Zero.NONE,
    source="ggml-quants.c dequantize_row_q4_0: y = (q - 8) * d, d f16",
)
