"""Rotary position embeddings: what config.json says of them, in either generation of transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from exporters.gguf.container import Value, string, uint32
from exporters.gguf.numbers import Config, Metadata, count_in, float32, number_in, positive, shortest, size, text_in

REMEDY = "export a model without it, or leave GGUF out"
STATED = ("linear", "yarn")
YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
}
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0  # every Llama that uses the rule has these


def parameters(config: Config, types: Sequence[str]) -> dict[str, Any]:
    """``rope_type``, ``rope_theta`` and what the type needs; Refused for a type that is not among ``types``."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **scaling}
    rope["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
    rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    if rope["rope_type"] not in types:
        raise Refused(
            f"config.json: rope type {rope['rope_type']!r} is not supported; known: {', '.join(types)}", REMEDY
        )
    return rope


def scaling_metadata(architecture: str, rope: Mapping[str, Any]) -> dict[str, Value]:
    """The ``rope.scaling`` keys of a type that is stated in metadata: linear or yarn."""
    prefix, kind = f"{architecture}.rope.scaling.", rope["rope_type"]
    if kind not in STATED or rope.get("factor") == 1.0:
        return {}
    found = {prefix + "type": string(kind), prefix + "factor": float32(rope, "factor")}
    if kind == "yarn":
        _require_usual_yarn(rope)
        found[prefix + "original_context_length"] = uint32(size(rope, "original_max_position_embeddings"))
    return found


def scaling_config(architecture: str, metadata: Metadata, types: Sequence[str]) -> dict[str, Any]:
    """The inverse of `scaling_metadata`: ``rope_scaling`` of config.json, or nothing.

    Raises Refused for a type that is neither "none" nor among ``types``, and for settings that no config.json has.
    """
    prefix = f"{architecture}.rope.scaling."
    kind = text_in(metadata, prefix + "type", "linear")  # llama.cpp's default, which factor 1 makes none
    factor = number_in(metadata, prefix + "factor", number_in(metadata, f"{architecture}.rope.scale_linear", 1.0))
    unusual = sorted(key for key in metadata if key.startswith(prefix + "yarn_") or key == prefix + "alpha")
    if unusual:
        raise Refused(f"metadata {unusual[0]} is there, which no config.json can say", REMEDY)
    if kind not in ("none", *types) and (prefix + "type" in metadata or factor != 1.0):
        raise Refused(f"metadata {prefix}type is {kind!r}; known: none, {', '.join(types)}", REMEDY)
    if kind == "none" or factor == 1.0:
        return {}
    if kind not in STATED:
        raise Refused(f"metadata {prefix}factor is {factor} beside type {kind!r}", REMEDY)
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        trained = count_in(metadata, f"{architecture}.context_length")
        scaling["original_max_position_embeddings"] = count_in(metadata, prefix + "original_context_length", trained)
    return {"rope_scaling": scaling}


def _require_usual_yarn(rope: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp does otherwise: all but the paper's own constants."""
    for key, usual in YARN.items():
        if rope.get(key, usual) not in (usual, None):
            raise Refused(f"config.json: yarn with {key} {rope[key]!r}; GGUF export supports {usual!r}", REMEDY)


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
