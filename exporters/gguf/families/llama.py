"""Llama 1 to 3.3 and what is built like them: Mistral 7B, SmolLM2, TinyLlama.

Llama 3's stretched rotations travel as a tensor of factors, one for each frequency.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from edgeqaf.digest import Floats
from exporters.gguf import rope
from exporters.gguf.family import Family, attention, feed_forward, sliding_window
from exporters.gguf.numbers import Config, Metadata
from exporters.gguf.places import Dimensions, Place

ROPE_FACTORS = "rope_freqs.weight"


class Llama(Family):
    """llama.cpp src/models/llama.cpp."""

    architecture = "llama"
    model_types = ("llama", "mistral")
    model_class = "LlamaForCausalLM"
    only: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
    }
    rope_types = ("default", "linear", "yarn", "llama3")
    factor_names = (ROPE_FACTORS,)

    def ignored_window(self, config: Config) -> int | None:
        return sliding_window(config, 4096) if config["model_type"] == "mistral" else None

    def factors(self, config: Config) -> dict[str, Floats]:
        rotations = self.rope(config)
        if rotations["rope_type"] != "llama3":
            return {}
        return {ROPE_FACTORS: rope.llama3_factors(rotations, self.dimensions(config).rotary)}

    def config(self, metadata: Metadata, factors: Mapping[str, Floats]) -> dict[str, Any]:
        config = super().config(metadata, factors)
        if ROPE_FACTORS in factors:
            config |= rope.llama3_config(factors[ROPE_FACTORS], config["rope_theta"])
        return config

    def layer(self, d: Dimensions) -> Iterator[Place]:
        yield self.norm("input_layernorm", "attn_norm", d)
        yield from attention(d, interleaved=True)
        yield self.norm("post_attention_layernorm", "ffn_norm", d)
        yield from feed_forward(d)


family = Llama()
