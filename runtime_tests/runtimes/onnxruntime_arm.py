"""ONNX Runtime on 64-bit ARM processors, emulated.

Level 4 needs the dot-product instructions, which a Cortex-A72 (Raspberry Pi 4) lacks: it computes as level 1 there.
A Cortex-A76 has them but no int8 matrix products; its kernel for codes of 8 bits adds and takes away large terms, in
an order not known here: it is up to 4e-6 off the exact answer.
"""

from runtime_tests.onnx.elsewhere import Elsewhere
from runtime_tests.onnx.ways import all_ways

runtime = Elsewhere({"cortex-a72": all_ways(int8=False), "cortex-a76": all_ways(unproven=(8,)), "armv9": all_ways()})
