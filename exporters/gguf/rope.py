"""Rotary position embeddings: what config.json says of them, in either generation of transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from exporters.gguf.container import Value, string
from exporters.gguf.numbers import Config, Metadata, float32, number_in, positive, shortest, text_in

REMEDY = "export a model without it, or leave GGUF out"
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0  # every Llama that uses the rule has these


def parameters(config: Config, types: Sequence[str]) -> dict[str, Any]:
    """``rope_type``, ``rope_theta`` and what the type needs; Refused for a type that is not among ``types``."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **scaling}
    rope["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
    if rope["rope_type"] not in types:
        raise Refused(
            f"config.json: rope type {rope['rope_type']!r} is not supported; known: {', '.join(types)}", REMEDY
        )
    return rope


def scaling_metadata(architecture: str, rope: Mapping[str, Any]) -> dict[str, Value]:
    """The ``rope.scaling`` keys of a type that is stated in metadata."""
    if rope["rope_type"] != "linear" or rope.get("factor") == 1.0:
        return {}
    prefix = f"{architecture}.rope.scaling."
    return {prefix + "type": string("linear"), prefix + "factor": float32(rope, "factor")}


def scaling_config(architecture: str, metadata: Metadata) -> dict[str, Any]:
    """The inverse of `scaling_metadata`: ``rope_scaling`` of config.json, or nothing."""
    prefix = f"{architecture}.rope.scaling."
    kind = text_in(metadata, prefix + "type", "none")
    factor = number_in(metadata, prefix + "factor", number_in(metadata, f"{architecture}.rope.scale_linear", 1.0))
    if kind not in ("none", "linear", "longrope"):
        raise Refused(f"metadata {prefix}type is {kind!r}; known: none, linear", REMEDY)
    return {} if factor == 1.0 else {"rope_scaling": {"rope_type": "linear", "factor": factor}}


def llama3_factors(rope: Mapping[str, Any], dim: int) -> Floats:
    """What each rotation frequency is divided by, float32 [dim / 2].

    Llama 3.1's rule (transformers modeling_rope_utils.py, _compute_llama3_parameters): wavelengths
    beyond original / low_freq_factor are stretched by ``factor``, those under original /
    high_freq_factor are kept, and between the two the frequency is interpolated.
    """
    keys = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    theta, factor, low, high, original = (positive(rope, key) for key in keys)
    turns = original / (2 * np.pi) * theta ** -(np.arange(0, dim, 2) / dim)  # original / wavelength
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / factor + kept)).astype(np.float32)


def llama3_config(factors: Floats, theta: float) -> dict[str, Any]:
    """``rope_scaling`` of the Llama 3.1 rule that gives these factors; Refused if none with Meta's bounds does."""
    for original in (2**power for power in range(4, 21)):
        scaling = {
            "rope_type": "llama3",
            "factor": shortest(factors.max()),
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": original,
        }
        found = llama3_factors({**scaling, "rope_theta": theta}, 2 * factors.size)
        if (np.abs(found / factors - 1) < 2**-20).all():  # llama.cpp's converter works in float32
            return {"rope_scaling": scaling}
    raise Refused(f"the {factors.size} factors of rope_freqs.weight follow no Llama 3 rule", REMEDY)
