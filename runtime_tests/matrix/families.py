"""The headings of the matrix, in order, and which rows stand under each, told by runtime and configuration."""

import re

_FAMILIES = {
    "GPU": r"cuda|vulkan|webgpu",
    "PyTorch": r"torch_|interpreter ",
    "llama.cpp": r"llama_cpp",
    "ONNX Runtime elsewhere": r"onnxruntime_(node|web|openvino)",
    "ONNX Runtime": r"onnxruntime",
}
ORDER = ("PyTorch", "llama.cpp", "ONNX Runtime", "ONNX Runtime elsewhere", "GPU", "Others")


def family(runtime: str, configuration: str) -> str:
    """One of `ORDER`; "Others" for a runtime that no heading knows."""
    row = f"{runtime} {configuration}"
    return next((name for name, pattern in _FAMILIES.items() if re.search(pattern, row)), ORDER[-1])
