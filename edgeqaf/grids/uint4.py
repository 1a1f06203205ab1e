"""4-bit blocks of 32 with an integer zero point: what GPTQ and AWQ checkpoints and ONNX files hold."""

from edgeqaf.grid import Grid, Zero

grid = Grid(
    name="uint4",
    bits=4,
    lo=0,
    hi=15,
    block=32,
    zero=Zero.CODE,
    source="ONNX DequantizeLinear, uint4: y = (x - zero_point) * scale",
)
