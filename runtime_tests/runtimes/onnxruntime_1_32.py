"""ONNX Runtime 1.32.0, newer than the one this version of edgeqaf is made with."""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({"1.32": all_ways()})
