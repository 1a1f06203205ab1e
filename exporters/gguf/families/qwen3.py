"""Qwen3: Llama's layer with a norm over each head's query and key."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from exporters.gguf.family import Family, attention, feed_forward, sliding_window, vector
from exporters.gguf.numbers import Config
from exporters.gguf.places import Dimensions, Place


class Qwen3(Family):
    """llama.cpp src/models/qwen3.cpp."""

    architecture = "qwen3"
    model_types = ("qwen3",)
    model_class = "Qwen3ForCausalLM"
    only: ClassVar[Mapping[str, tuple[Any, Any]]] = {"hidden_act": ("silu", "silu"), "attention_bias": (False, False)}
    usual_head_dim = 128
    rope_types = ("default", "linear", "yarn")

    def ignored_window(self, config: Config) -> int | None:
        return sliding_window(config, 4096) if config.get("use_sliding_window") else None

    def layer(self, d: Dimensions) -> Iterator[Place]:
        yield self.norm("input_layernorm", "attn_norm", d)
        yield from attention(d)
        yield vector("self_attn.q_norm", "attn_q_norm", d.head_dim)
        yield vector("self_attn.k_norm", "attn_k_norm", d.head_dim)
        yield self.norm("post_attention_layernorm", "ffn_norm", d)
        yield from feed_forward(d)


family = Qwen3()
