"""ONNX Runtime 1.24.4, whose kernels many devices still have."""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({"1.24": all_ways()})
