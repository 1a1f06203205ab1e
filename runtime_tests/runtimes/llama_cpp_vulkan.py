"""llama.cpp's code for Vulkan, on a Vulkan in software."""

from edgeqaf.protocols import Configuration, Form
from runtime_tests.ggml.elsewhere import Elsewhere, Way
from runtime_tests.ggml.places import vulkan

runtime = Elsewhere(
    [
        Way(
            Configuration("float32", int8_activations=False, offset_form=Form.DECODED),
            vulkan(DISABLE_F16="1"),
            replays=False,
        ),
        Way(
            Configuration("float16", int8_activations=False, offset_form=Form.DECODED),
            vulkan(),
            replays=False,
        ),
    ],
    isa="",
)
