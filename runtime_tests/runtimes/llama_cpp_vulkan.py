"""llama.cpp's code for Vulkan, on a Vulkan in software: activations stay floats, of 16 bits by default and of 32."""

from runtime_tests.ggml.elsewhere import Elsewhere, gpu_ways
from runtime_tests.ggml.places import vulkan

runtime = Elsewhere([*gpu_ways(half=vulkan(), single=vulkan(DISABLE_F16="1"))], isa="")
