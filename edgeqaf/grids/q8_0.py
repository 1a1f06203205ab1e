"""Symmetric 8-bit blocks of 32: nearly lossless against float weights."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q8_0",
    bits=8,
    lo=-128,
    hi=127,
    block=32,
    zero=Zero.NONE,
    source="ggml-quants.c dequantize_row_q8_0: y = q * d, d f16",
)
