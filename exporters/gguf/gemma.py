"""What Gemma 2 and Gemma 3 share: norms that count as 1 + w, four of them in a layer, and local attention.

The file holds 1 + w, as llama.cpp multiplies by it; transformers adds the one in float32 when it runs.
"""

from collections.abc import Iterator
from typing import ClassVar

from edgeqaf.errors import Refused
from edgeqaf.source import is_tied
from exporters.gguf.container import Value, uint32
from exporters.gguf.family import UNSUPPORTED, Family, attention, feed_forward, sliding_window, vector
from exporters.gguf.numbers import Config, positive
from exporters.gguf.places import Dimensions, Place

LOCAL, GLOBAL = "sliding_attention", "full_attention"
WINDOW = 4096  # transformers' default


class Gemma(Family):
    """largest: how many layers the 27B model has, which llama.cpp knows by; period: every which layer is global."""

    usual_head_dim = 256
    largest: ClassVar[int]
    period: ClassVar[int]

    def check(self, config: Config) -> None:
        super().check(config)
        d = self.dimensions(config)
        scalar = self.query_scalar(d)
        if positive({"query_pre_attn_scalar": 256, **config}, "query_pre_attn_scalar") != scalar:
            raise Refused(
                f"config.json: query_pre_attn_scalar is {config.get('query_pre_attn_scalar', 256)!r}; "
                f"llama.cpp takes {scalar} for this model",
                UNSUPPORTED,
            )
        if not is_tied(config):
            raise Refused("config.json: tie_word_embeddings is false; llama.cpp takes the embedding", UNSUPPORTED)
        found, usual = self.layer_types(config, d.layers), self.pattern(d.layers)
        if found != usual:
            odd = next((i for i, (a, b) in enumerate(zip(found, usual, strict=False)) if a != b), d.layers)
            raise Refused(
                f"config.json: layer_types differ from llama.cpp's at layer {odd}: it makes every "
                f"{self.period}. layer global, the others local",
                UNSUPPORTED,
            )

    def query_scalar(self, d: Dimensions) -> int:
        """What llama.cpp divides attention scores by the root of."""
        return d.hidden // d.heads if d.layers == self.largest else d.head_dim

    def pattern(self, layers: int) -> list[str]:
        """Which layers llama.cpp takes as local and global (llama-hparams.cpp, set_swa_pattern)."""
        return [LOCAL if (i + 1) % self.period else GLOBAL for i in range(layers)]

    def layer_types(self, config: Config, layers: int) -> list[str]:
        """Which layers transformers takes as local and global."""
        return list(config.get("layer_types") or self.pattern(layers))

    def metadata(self, config: Config) -> dict[str, Value]:
        window = sliding_window(config, WINDOW)
        if window is None:
            raise Refused("config.json: sliding_window is null; llama.cpp's graph has local layers", UNSUPPORTED)
        return super().metadata(config) | {f"{self.architecture}.attention.sliding_window": uint32(window)}

    def layer(self, d: Dimensions) -> Iterator[Place]:
        yield self.norm("input_layernorm", "attn_norm", d)
        yield from attention(d)
        yield from self.head_norms(d)
        yield self.norm("post_attention_layernorm", "post_attention_norm", d)
        yield self.norm("pre_feedforward_layernorm", "ffn_norm", d)
        yield from feed_forward(d)
        yield self.norm("post_feedforward_layernorm", "post_ffw_norm", d)

    def head_norms(self, d: Dimensions) -> Iterator[Place]:
        """Norms over each head's query and key."""
        yield from ()

    def norm(self, logical: str, stored: str, d: Dimensions) -> Place:
        return vector(logical, stored, d.hidden, added=1.0)
