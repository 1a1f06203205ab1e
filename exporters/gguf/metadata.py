"""The metadata of a file: what it is, and what its family says of the model."""

from exporters.gguf.container import Value, string, uint32
from exporters.gguf.family import Family
from exporters.gguf.numbers import Config

QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION


def model_metadata(family: Family, config: Config, file_type: int) -> dict[str, Value]:
    """Every ``general.*`` and ``<arch>.*`` key. file_type: llama.h, enum llama_ftype."""
    return {
        "general.architecture": string(family.architecture),
        "general.type": string("model"),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        "general.file_type": uint32(file_type),
        **family.metadata(config),
    }
