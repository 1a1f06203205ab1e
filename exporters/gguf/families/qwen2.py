"""Qwen2 and Qwen2.5: Llama's layer with biases on queries, keys and values."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from exporters.gguf.family import Family, attention, feed_forward, require_square, sliding_window
from exporters.gguf.numbers import Config
from exporters.gguf.places import Dimensions, Place


class Qwen2(Family):
    """llama.cpp src/models/qwen2.cpp."""

    architecture = "qwen2"
    model_types = ("qwen2",)
    model_class = "Qwen2ForCausalLM"
    only: ClassVar[Mapping[str, tuple[Any, Any]]] = {"hidden_act": ("silu", "silu"), "use_mrope": (False, False)}
    rope_types = ("default", "linear", "yarn")

    def dimensions(self, config: Config) -> Dimensions:
        found = super().dimensions(config)
        require_square(found)
        return found

    def ignored_window(self, config: Config) -> int | None:
        return sliding_window(config, 4096) if config.get("use_sliding_window") else None

    def layer(self, d: Dimensions) -> Iterator[Place]:
        wide, narrow = d.heads * d.head_dim, d.kv_heads * d.head_dim
        yield self.norm("input_layernorm", "attn_norm", d)
        yield from attention(d)
        for part, stored, length in (("q", "attn_q", wide), ("k", "attn_k", narrow), ("v", "attn_v", narrow)):
            yield Place(f"self_attn.{part}_proj.bias", f"{stored}.bias", (length,))
        yield self.norm("post_attention_layernorm", "ffn_norm", d)
        yield from feed_forward(d)


family = Qwen2()
