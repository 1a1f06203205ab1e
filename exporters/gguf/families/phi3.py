"""Phi-3, Phi-3.5 and Phi-4-mini: fused projections, and rotations stretched by two lists of factors.

The projections stay fused: the file has the very tensors of the checkpoint. llama.cpp takes the long
factors for every token as soon as its context is larger than the original one; transformers takes them
once the sequence is. The two agree up to the original length in a context no larger, and beyond it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from exporters.gguf import rope
from exporters.gguf.container import Type, Value, uint32
from exporters.gguf.family import UNSUPPORTED, Family, matrix, require_square, sliding_window
from exporters.gguf.numbers import Config, Metadata, count_in, number_in, positive, shortest, size
from exporters.gguf.places import Dimensions, Place

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = {LONG: "long_factor", SHORT: "short_factor"}  # in the file: in config.json
ORIGINAL = 4096  # original_max_position_embeddings where config.json has none


class Phi3(Family):
    """llama.cpp src/models/phi3.cpp."""

    architecture = "phi3"
    model_types = ("phi3",)
    model_class = "Phi3ForCausalLM"
    only: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
        "lm_head_bias": (False, False),
    }
    rope_types = ("default", "longrope")
    rotates_part = True
    factor_names = tuple(FACTORS)

    def dimensions(self, config: Config) -> Dimensions:
        found = super().dimensions(config)
        require_square(found)
        return found

    def rope(self, config: Config) -> dict[str, Any]:
        stated = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        kind = stated.pop("type", "default")
        kind = stated.get("rope_type", kind)
        stated["rope_type"] = "longrope" if kind in ("su", "yarn") else kind  # older names of the same
        stated.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        return rope.parameters({**config, "rope_parameters": stated}, self.rope_types)

    def rotary(self, config: Config, head_dim: int) -> int:
        rotary = int(head_dim * positive(self.rope(config), "partial_rotary_factor"))
        if rotary % 2 or not 0 < rotary <= head_dim:
            raise Refused(
                f"config.json: {rotary} of a head's {head_dim} dimensions rotate, not an even part", UNSUPPORTED
            )
        return rotary

    def ignored_window(self, config: Config) -> int | None:
        return sliding_window(config, None)

    def metadata(self, config: Config) -> dict[str, Value]:
        name, rotations = self.architecture, self.rope(config)
        found = super().metadata(config)
        found[f"{name}.attention.sliding_window"] = uint32(sliding_window(config, None) or 0)
        found[f"{name}.rope.scaling.original_context_length"] = uint32(self.original(config))
        if rotations["rope_type"] == "longrope":
            found[f"{name}.rope.scaling.attn_factor"] = Value(Type.FLOAT32, shortest(self.attention_factor(config)))
        return found

    def original(self, config: Config) -> int:
        """The length the model was first trained for."""
        return size({"original_max_position_embeddings": ORIGINAL, **config}, "original_max_position_embeddings")

    def attention_factor(self, config: Config) -> float:
        """What cosines and sines are scaled by (transformers modeling_rope_utils.py, _compute_longrope_parameters)."""
        rotations, original = self.rope(config), self.original(config)
        if rotations.get("attention_factor") is not None:
            return positive(rotations, "attention_factor")
        stretch = size(config, "max_position_embeddings") / original
        if rotations.get("factor") is not None:
            stretch = positive(rotations, "factor")
        return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0

    def factors(self, config: Config) -> dict[str, Floats]:
        rotations = self.rope(config)
        if rotations["rope_type"] != "longrope":
            return {}
        length = self.dimensions(config).rotary // 2
        return {
            name: _factors(rotations, key, length) for name, key in ((LONG, "long_factor"), (SHORT, "short_factor"))
        }

    def config(self, metadata: Metadata, factors: Mapping[str, Floats]) -> dict[str, Any]:
        found, name, d = super().config(metadata, factors), self.architecture, self.dimensions_in(metadata)
        scaling, window = f"{name}.rope.scaling.", f"{name}.attention.sliding_window"
        original = count_in(metadata, scaling + "original_context_length", found["max_position_embeddings"])
        found |= {
            "partial_rotary_factor": d.rotary / d.head_dim,
            "original_max_position_embeddings": original,
            "sliding_window": count_in(metadata, window) if window in metadata and metadata[window].data else None,
        }
        if factors:
            found["rope_scaling"] = {
                "rope_type": "longrope",
                **{key: [shortest(x) for x in factors[stored]] for stored, key in FACTORS.items()},
                "attention_factor": number_in(metadata, scaling + "attn_factor", 1.0),
            }
        return found

    def layer(self, d: Dimensions) -> Iterator[Place]:
        wide, narrow = d.heads * d.head_dim, d.kv_heads * d.head_dim
        yield self.norm("input_layernorm", "attn_norm", d)
        yield matrix("self_attn.qkv_proj", "attn_qkv", wide + 2 * narrow, d.hidden)
        yield matrix("self_attn.o_proj", "attn_output", d.hidden, wide)
        yield self.norm("post_attention_layernorm", "ffn_norm", d)
        yield matrix("mlp.gate_up_proj", "ffn_up", 2 * d.feed_forward, d.hidden)
        yield matrix("mlp.down_proj", "ffn_down", d.hidden, d.feed_forward)


def _factors(rotations: Mapping[str, Any], key: str, length: int) -> Floats:
    values = rotations.get(key)
    if not isinstance(values, list) or len(values) != length:
        raise Refused(f"config.json: {key} is not a list of {length} numbers", "fetch the model again")
    return np.array([positive({key: value}, key) for value in values], np.float32)


family = Phi3()
