"""Every variant of llama.cpp's code for x86, on this processor; one that it lacks instructions for is absent.

From haswell (AVX2) on, llama.cpp rearranges matrices while it loads them.
"""

from runtime_tests.ggml.elsewhere import Elsewhere, cpu_ways
from runtime_tests.ggml.places import x86
from runtime_tests.ggml.session import ReproducingSession

BEFORE = ("x64", "sse42", "sandybridge", "ivybridge", "piledriver")
SINCE = (  # the last, which most processors can run, is the default of `edgeqaf eval`
    "sapphirerapids", "zen4", "cooperlake", "icelake", "cascadelake", "cannonlake", "skylakex", "alderlake", "haswell",
)  # fmt: skip

runtime = Elsewhere(
    [way for name in (*BEFORE, *SINCE) for way in cpu_ways(name, x86(name), name in SINCE, ReproducingSession)]
)
