"""ONNX Runtime on 64-bit ARM processors, emulated.

Level 4 needs the dot-product instructions, which a Cortex-A72 (Raspberry Pi 4) lacks: it computes as level 1 there.
"""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({"cortex-a72": all_ways(int8=False), "cortex-a76": all_ways(), "armv9": all_ways()})
