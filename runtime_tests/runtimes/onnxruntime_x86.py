"""ONNX Runtime on x86 processors of other levels, emulated; level 4 has a kernel of its own from AVX2 on."""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({"avx2": all_ways(), "avx": all_ways(int8=False), "sse": all_ways(int8=False)})
