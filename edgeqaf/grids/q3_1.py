"""3-bit blocks of 32 with a float16 minimum: for study. Files carry its codes in 4-bit types.

The name follows q4_1; it is no ggml type.
"""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q3_1",
    bits=3,
    lo=0,
    hi=7,
    block=32,
    zero=Zero.OFFSET,
    source="this project: the values q * d + m are among those of ggml's Q4_1, d and m f16",
)
