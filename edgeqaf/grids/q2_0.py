"""Symmetric 2-bit blocks of 32: for study, and for ONNX's UINT2 where the runtime has it.

The name follows q4_0; ggml has a type of the same spelling since 0.26, with blocks of 64, which is another format.
"""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="q2_0",
    bits=2,
    lo=0,
    hi=3,
    centre=2,
    block=32,
    zero=Zero.NONE,
    source="this project: the values (q - 2) * d are among those of ggml's Q4_0, d f16",
)
