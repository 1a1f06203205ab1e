"""Symmetric 5-bit blocks of 32."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q5_0",
    bits=5,
    lo=0,
    hi=31,
    centre=16,
    block=32,
    zero=Zero.NONE,
    source="ggml-quants.c dequantize_row_q5_0: y = (q - 16) * d, d f16",
)
