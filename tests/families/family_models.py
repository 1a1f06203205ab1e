"""Random models of every family: the published config, so reduced that a test takes a second, its flags kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = CHECKOUT.parent / "shared"
STORYTELLER = CHECKOUT / "examples" / "storyteller-6m"  # its tokenizer: 4096 tokens
VOCABULARY = 4096
TOKENS = 40  # of the prompt: more than every window and every original length below
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MISTRAL = {  # Mistral-7B-v0.1
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
}  # fmt: skip
SMOLLM2 = {  # SmolLM2-135M
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
    "is_llama_config": True, "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
    "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """published: a folder of shared/configs, or the config itself; changes: on top of `SMALL`."""

    published: str | Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        if isinstance(self.published, str):
            path = SHARED / "configs" / self.published / "config.json"
            if not path.is_file():
                pytest.skip(f"{self.published} is not beside the checkout")
            published = json.loads(path.read_text("utf-8"))
        else:
            published = dict(self.published)
        return {**published, **SMALL, **self.changes}


def phi(published: str, parts: int, original: int, **changes: Any) -> Case:
    """A Phi whose lists of factors are thinned out to ``parts``."""

    @dataclass(frozen=True)
    class Phi(Case):
        def config(self) -> dict[str, Any]:
            config = super().config()
            factors = {k: v[:: len(v) // parts] for k, v in config["rope_scaling"].items() if isinstance(v, list)}
            return config | {"rope_scaling": config["rope_scaling"] | factors}

    return Phi(published, {"original_max_position_embeddings": original, "model_type": "phi3", **changes})


CASES = {
    "llama 3 8B": Case("llama3-8B-instruct", {"num_key_value_heads": 4}),
    "llama 3.2 1B": Case("Llama-3.2-1B-Instruct", {"rope_scaling": LLAMA3, "head_dim": 32}),
    "llama 3.2 3B": Case("Llama-3.2-3B-Instruct", {"rope_scaling": LLAMA3, "tie_word_embeddings": False}),
    "llama linear": Case("llama3-8B-instruct", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama yarn": Case("llama3-8B-instruct", {"rope_scaling": YARN, "rope_theta": 10000.0}),
    "smollm2": Case(SMOLLM2, {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 96, "head_dim": 32}),
    "mistral v0.1": Case(MISTRAL, {"sliding_window": 24}),
    "mistral v0.3": Case(MISTRAL, {"sliding_window": None, "rope_theta": 1e6, "head_dim": 32}),
    "qwen2 7B": Case("Qwen2-7B-Instruct"),
    "qwen2.5 0.5B": Case("Qwen2.5-0.5B-Instruct"),
    "qwen2 windows": Case(
        "Qwen2.5-3B", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    ),
    "qwen2.5 yarn": Case("Qwen2.5-0.5B-Instruct", {"rope_scaling": YARN}),
    "qwen3 1.7B": Case("Qwen3-1.7B", {"head_dim": 32}),
    "qwen3 linear": Case("Qwen3-4B", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "qwen3 yarn": Case("Qwen3-4B", {"rope_scaling": YARN | {"factor": 2.0}}),
    "gemma 2 2B": Case("gemma2_2b_it", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}),
    "gemma 2 27B": Case(
        "gemma2_2b_it",
        {"num_hidden_layers": 46, "query_pre_attn_scalar": 16, "head_dim": 8, "hidden_size": 32, "sliding_window": 16,
         "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "gemma 3 1B": Case(
        "gemma3_1b_it",
        {"model_type": "gemma3_text", "num_hidden_layers": 7, "num_key_value_heads": 1, "head_dim": 32,
         "query_pre_attn_scalar": 32, "sliding_window": 16},
    ),
    "gemma 3 4B": Case(
        "gemma3_1b_it",
        {"model_type": "gemma3_text", "num_hidden_layers": 7, "query_pre_attn_scalar": 16, "sliding_window": 16,
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 20.0},
    ),
    "phi 3.5 mini, long": phi("phi3.5-mini-instruct", 8, 32, num_key_value_heads=4),
    "phi 3.5 mini, short": phi("phi3.5-mini-instruct", 8, 512, max_position_embeddings=1024, num_key_value_heads=4),
    "phi 3 mini 4k": Case(
        "phi3.5-mini-instruct", {"rope_scaling": None, "sliding_window": 24, "num_key_value_heads": 4}
    ),
    "phi 4 mini": phi("phi-4-mini-reasoning", 6, 32),
}  # fmt: skip


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights for every parameter that transformers gives this architecture.

    Attention is sharp, so that rotations and windows count. Gemma's gates are open or shut: between -10 and 10
    llama.cpp's CPU takes GELU from a table in float16, which would hide every smaller difference (ggml-cpu/vec.h,
    ggml_vec_gelu_f32). What the layers of a very deep model add to the residual is small, so that rounding is not
    amplified from layer to layer.
    """
    from edgeqaf.modeling import skeleton
    from edgeqaf.source import HEAD, is_tied

    rng = np.random.default_rng(seed)
    gemma, deep = "gemma" in config["model_type"], config["num_hidden_layers"] > 20
    tensors = {}
    for name, parameter in skeleton(config).named_parameters():
        if name == HEAD and is_tied(config):
            continue
        shape = tuple(parameter.shape)
        if name.endswith("norm.weight"):
            mean = -0.9 if deep and "layers" in name and ".post_" in name else 0 if gemma else 1
            values = rng.normal(mean, 0.02 if deep else 0.2, shape)
        elif name.endswith(".bias"):
            values = rng.normal(0, 0.5, shape)
        else:
            sharp = 3 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1
            gate = 2.0**18 if gemma and "gate" in name else 2.0**-18 if gemma and "down" in name else 1
            values = rng.normal(0, gate * sharp * shape[1] ** -0.5, shape)
        tensors[name] = values.astype(np.float32)
    return tensors
