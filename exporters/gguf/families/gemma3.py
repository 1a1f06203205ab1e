"""Gemma 3 as a language model: five local layers to a global one, rotated at two speeds, and norms over each head."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from exporters.gguf import rope
from exporters.gguf.container import Value
from exporters.gguf.family import UNSUPPORTED, vector
from exporters.gguf.gemma import GLOBAL, LOCAL, Gemma
from exporters.gguf.numbers import Config, Metadata, count_in, float32, number_in
from exporters.gguf.places import Dimensions, Place

FAST, SLOW = 10_000.0, 1_000_000.0  # rope_theta of local and global layers, where config.json has none


class Gemma3(Gemma):
    """llama.cpp src/models/gemma3.cpp."""

    architecture = "gemma3"
    model_types = ("gemma3_text",)
    model_class = "Gemma3ForCausalLM"
    only: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "hidden_activation": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
        "attention_bias": (False, False),
        "use_bidirectional_attention": (False, False),
        "attn_logit_softcapping": (None, None),
    }
    largest, period = 62, 6

    def layer_types(self, config: Config, layers: int) -> list[str]:
        period = config.get("sliding_window_pattern", self.period)
        if config.get("layer_types") or period == self.period:
            return super().layer_types(config, layers)
        raise Refused(f"config.json: sliding_window_pattern is {period!r}; llama.cpp takes {self.period}", UNSUPPORTED)

    def rope(self, config: Config) -> dict[str, Any]:
        """Of the global layers: the slow one, which may be stretched."""
        stated = config.get("rope_parameters") or {}
        if GLOBAL in stated:
            config = {"rope_theta": config.get("rope_theta", SLOW), "rope_parameters": stated[GLOBAL]}
        found = rope.parameters({"rope_theta": SLOW, **config}, self.rope_types)
        if "type" in found and found.get("factor", 1.0) != 1.0:
            raise Refused(
                "config.json: rope_scaling says 'type' for rope_type, which transformers skips here", UNSUPPORTED
            )
        return found

    def local_rope(self, config: Config) -> dict[str, Any]:
        """Of the local layers, which is never stretched."""
        stated = (config.get("rope_parameters") or {}).get(LOCAL) or {}
        theta = config.get("rope_local_base_freq", FAST)
        return rope.parameters({"rope_theta": theta, "rope_parameters": stated}, ("default",))

    def metadata(self, config: Config) -> dict[str, Value]:
        name = self.architecture
        found = super().metadata(config)
        found[f"{name}.rope.freq_base_swa"] = float32(self.local_rope(config), "rope_theta")
        if config.get("final_logit_softcapping"):
            found[f"{name}.final_logit_softcapping"] = float32(config, "final_logit_softcapping")
        return found

    def config(self, metadata: Metadata, factors: Mapping[str, Floats]) -> dict[str, Any]:
        found, name = super().config(metadata, factors), self.architecture
        cap = f"{name}.final_logit_softcapping"
        return found | {
            "rope_local_base_freq": number_in(metadata, f"{name}.rope.freq_base_swa", FAST),
            "query_pre_attn_scalar": self.query_scalar(self.dimensions_in(metadata)),
            "sliding_window": count_in(metadata, f"{name}.attention.sliding_window"),
            "final_logit_softcapping": number_in(metadata, cap) if cap in metadata else None,
        }

    def head_norms(self, d: Dimensions) -> Iterator[Place]:
        yield vector("self_attn.q_norm", "attn_q_norm", d.head_dim, added=1.0)
        yield vector("self_attn.k_norm", "attn_k_norm", d.head_dim, added=1.0)


family = Gemma3()
