"""3-bit blocks of 32 with an integer zero point: for study. ONNX carries its codes in UINT4."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="uint3",
    bits=3,
    lo=0,
    hi=7,
    block=32,
    zero=Zero.CODE,
    source="ONNX DequantizeLinear, uint4: y = (x - zero_point) * scale, codes below 8",
)
