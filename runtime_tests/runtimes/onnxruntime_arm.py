"""ONNX Runtime on 64-bit ARM processors, emulated."""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({place: all_ways() for place in ("cortex-a72", "cortex-a76", "armv9")})
