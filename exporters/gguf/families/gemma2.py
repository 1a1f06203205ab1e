"""Gemma 2: local and global attention in turn, and soft caps on attention scores and logits."""

from collections.abc import Mapping
from typing import Any, ClassVar

from edgeqaf.digest import Floats
from exporters.gguf.container import Value
from exporters.gguf.gemma import WINDOW, Gemma
from exporters.gguf.numbers import Config, Metadata, count_in, float32, number_in

CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # the same name in both, and the default


class Gemma2(Gemma):
    """llama.cpp src/models/gemma2.cpp."""

    architecture = "gemma2"
    model_types = ("gemma2",)
    model_class = "Gemma2ForCausalLM"
    only: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "hidden_activation": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
        "attention_bias": (False, False),
        "use_bidirectional_attention": (None, None),
    }
    largest, period = 46, 2

    def metadata(self, config: Config) -> dict[str, Value]:
        caps = {f"{self.architecture}.{key}": float32({**CAPS, **config}, key) for key in CAPS}
        return super().metadata(config) | caps

    def config(self, metadata: Metadata, factors: Mapping[str, Floats]) -> dict[str, Any]:
        found, name = super().config(metadata, factors), self.architecture
        return found | {
            "query_pre_attn_scalar": self.query_scalar(self.dimensions_in(metadata)),
            "sliding_window": count_in(metadata, f"{name}.attention.sliding_window", WINDOW),
            **{key: number_in(metadata, f"{name}.{key}", default) for key, default in CAPS.items()},
        }


family = Gemma2()
