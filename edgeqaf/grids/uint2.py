"""2-bit blocks of 32 with an integer zero point: for study, and for ONNX's UINT2 where the runtime has it."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="uint2",
    bits=2,
    lo=0,
    hi=3,
    block=32,
    zero=Zero.CODE,
    source="ONNX DequantizeLinear, uint2: y = (x - zero_point) * scale",
)
