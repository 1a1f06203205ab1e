"""2-bit blocks of 32 with a float16 minimum: for study; four free levels a block, the best that 2 bits do here.

The name follows q4_1; it is no ggml type.
"""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q2_1",
    bits=2,
    lo=0,
    hi=3,
    block=32,
    zero=Zero.OFFSET,
    source="this project: the values q * d + m are among those of ggml's Q4_1, d and m f16",
)
