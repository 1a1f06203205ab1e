"""Every variant of llama.cpp's code for 64-bit ARM, on emulated processors.

With the dot-product instructions, from a Cortex-A76 on, llama.cpp rearranges matrices while it loads them; a Cortex-A72
(Raspberry Pi 4) lacks them. ``max`` is the largest processor that qemu has: int8 matrix products, SVE (of 128 bits).
"""

from runtime_tests.ggml.elsewhere import Elsewhere, cpu_ways
from runtime_tests.ggml.places import arm
from runtime_tests.ggml.session import ReplayingSession

VARIANTS = {
    "armv8.0_1": "cortex-a72",
    **dict.fromkeys(("armv8.2_1", "armv8.2_2"), "cortex-a76"),
    **dict.fromkeys(("armv8.2_3", "armv8.6_1", "armv8.6_2", "armv9.2_1", "armv9.2_2"), "max"),
}

runtime = Elsewhere(
    [
        way
        for name, processor in VARIANTS.items()
        for way in cpu_ways(f"{processor} {name}", arm(name, processor), name != "armv8.0_1", ReplayingSession)
    ]
)
