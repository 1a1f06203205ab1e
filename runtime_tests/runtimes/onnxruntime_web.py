"""onnxruntime-web: WebAssembly, as browsers run it, in Node; level 4 has no kernel of its own there."""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({"web": all_ways(int8=False)})
