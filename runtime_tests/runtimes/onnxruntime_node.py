"""onnxruntime-node: the library in Node."""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({"node": all_ways()})
