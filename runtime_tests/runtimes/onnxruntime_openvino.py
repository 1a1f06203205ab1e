"""ONNX Runtime with OpenVINO, which compiles the whole graph: in float32, and as it comes.

As it comes, it rounds activations to 8 bits in groups of its own.
"""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import exact_ways, way

runtime = Elsewhere(
    {
        "openvino-float32": (way("whole", {}), *exact_ways({"exact": "all"})),
        "openvino-dynamic": (way("whole", {}, int8=True), *exact_ways({"exact": "all"})),
    }
)
