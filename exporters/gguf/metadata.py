"""The ``llama.*`` metadata of a GGUF file, from a Hugging Face config.json and back.

Keys and their meaning: ggml docs/gguf.md, llama.cpp llama-model.cpp (load_hparams). A config that
asks for anything llama.cpp would compute differently is refused before any work is done.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from exporters.gguf.container import Type, Value, string, uint32
from exporters.gguf.names import Dimensions

Config = Mapping[str, Any]
QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION
UNSUPPORTED = "export a plain Llama model, or leave GGUF out"
# dimension -> (metadata key, config key)
SIZES = {
    "layers": ("llama.block_count", "num_hidden_layers"),
    "hidden": ("llama.embedding_length", "hidden_size"),
    "feed_forward": ("llama.feed_forward_length", "intermediate_size"),
    "heads": ("llama.attention.head_count", "num_attention_heads"),
    "kv_heads": ("llama.attention.head_count_kv", "num_key_value_heads"),
    "head_dim": ("llama.rope.dimension_count", "head_dim"),
    "vocab": ("llama.vocab_size", "vocab_size"),
}


def check_architecture(config: Config) -> None:
    """Refuse a model that llama.cpp's ``llama`` graph does not compute."""
    required = {
        "model_type": ("llama", "llama"),
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
    }
    for key, (default, wanted) in required.items():
        found = config.get(key, None if key == "model_type" else default)
        if found != wanted:
            raise Refused(f"config.json: {key} is {found!r}; GGUF export supports {wanted!r}", UNSUPPORTED)


def dimensions(config: Config) -> Dimensions:
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    optional = {"num_key_value_heads": heads, "head_dim": hidden // heads}
    defaults = {key: value for key, value in optional.items() if config.get(key) is None}
    found = {field: _size({**config, **defaults}, key) for field, (_, key) in SIZES.items()}
    if found["head_dim"] % 2 or heads % found["kv_heads"]:
        raise Refused(
            f"config.json: {heads} heads of {found['head_dim']} with {found['kv_heads']} key-value heads",
            "head_dim must be even, and the key-value heads must divide the heads",
        )
    return Dimensions(**found)


def dimensions_in(metadata: Mapping[str, Value]) -> Dimensions:
    """The sizes that a file's metadata states; raises Refused where one is missing."""
    found: dict[str, int] = {}
    for field, (key, _) in SIZES.items():
        value = metadata.get(key)
        if value is None or value.type is not Type.UINT32 or not isinstance(value.data, int) or value.data < 1:
            raise Refused(f"metadata {key} is missing or not a positive u32", "export the model again")
        found[field] = value.data
    return Dimensions(**found)


def model_metadata(config: Config, file_type: int) -> dict[str, Value]:
    """Every ``general.*`` and ``llama.*`` key."""
    d = dimensions(config)
    rope = rope_parameters(config)
    entries = {
        "general.architecture": string("llama"),
        "general.type": string("model"),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        "general.file_type": uint32(file_type),
        "llama.context_length": uint32(_size(config, "max_position_embeddings")),
        **{key: uint32(getattr(d, field)) for field, (key, _) in SIZES.items()},
        "llama.attention.key_length": uint32(d.head_dim),
        "llama.attention.value_length": uint32(d.head_dim),
        "llama.attention.layer_norm_rms_epsilon": _float32(config, "rms_norm_eps"),
        "llama.rope.freq_base": _float32(rope, "rope_theta"),
    }
    if rope["rope_type"] == "linear":
        entries["llama.rope.scaling.type"] = string("linear")
        entries["llama.rope.scaling.factor"] = _float32(rope, "factor")
    return entries


def rope_parameters(config: Config) -> dict[str, Any]:
    """``rope_type``, ``rope_theta`` and what the type needs, from either generation of config.json."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **scaling}
    rope["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Refused(f"config.json: partial_rotary_factor is {rope['partial_rotary_factor']!r}, not 1.0", UNSUPPORTED)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise Refused(
            f"config.json: rope type {rope['rope_type']!r} is not supported; known: default, linear, llama3",
            UNSUPPORTED,
        )
    return rope


def rope_factors(config: Config) -> Floats | None:
    """What each rotation frequency is divided by, float32 [head_dim / 2]; None unless the type is llama3.

    Llama 3.1's rule (transformers modeling_rope_utils.py, _compute_llama3_parameters): wavelengths
    beyond original / low_freq_factor are stretched by ``factor``, those under original /
    high_freq_factor are kept, and between the two the frequency is interpolated.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return None
    keys = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    theta, factor, low, high, original = (_positive(rope, key) for key in keys)
    dim = dimensions(config).head_dim
    turns = original / (2 * np.pi) * theta ** -(np.arange(0, dim, 2) / dim)  # original / wavelength
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / factor + kept)).astype(np.float32)


def _size(config: Config, key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise Refused(f"config.json: {key} is {value!r}, not a positive integer", "fetch the model again")
    return value


def _positive(values: Config, key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise Refused(f"config.json: {key} is {value!r}, not a positive number", "fetch the model again")
    return float(value)


def _float32(values: Config, key: str) -> Value:
    return Value(Type.FLOAT32, _positive(values, key))
