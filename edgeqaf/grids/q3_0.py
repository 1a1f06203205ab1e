"""Symmetric 3-bit blocks of 32: for study. Files carry it in 4-bit types, whose zero is another code.

The name follows q4_0; it is no ggml type.
"""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q3_0",
    bits=3,
    lo=0,
    hi=7,
    centre=4,
    block=32,
    zero=Zero.NONE,
    source="this project: the values (q - 4) * d are among those of ggml's Q4_0, d f16",
)
