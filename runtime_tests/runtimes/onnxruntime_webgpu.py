"""WebGPU kernels of ONNX Runtime, on a Vulkan in software. It does not fuse for them: two levels of optimization."""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import exact_ways, way

runtime = Elsewhere({"webgpu": (way("off", {"level": "off"}), way("optimized", {}), *exact_ways())})
