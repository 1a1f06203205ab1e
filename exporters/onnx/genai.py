"""The ``genai_config.json`` that onnxruntime-genai loads the folder by."""

from collections.abc import Mapping
from typing import Any

from exporters.onnx.trace import Traced

ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"  # ONNX Runtime's default is 4: activations of 8 bits


def genai_config(
    config: Mapping[str, Any], generation: Mapping[str, Any], traced: Traced, model: str, level: int
) -> dict[str, Any]:
    """The configuration for the decoder file ``model``, from config.json and generation_config.json.

    level: the accuracy level. The cache is not shared between past and present: our graph concatenates, as
    transformers does. Nothing is said of sliding windows: the graph masks what they leave out, and the cache is whole.
    """
    tokens = {key: generation.get(key, config.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    end = tokens["eos_token_id"]
    if tokens["pad_token_id"] is None:
        tokens["pad_token_id"] = end[0] if isinstance(end, list) else end
    context = config["max_position_embeddings"]
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], ACCURACY_LEVEL: str(level)},
        "filename": model,
        "head_size": traced.head_dim,
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_key_value_heads": traced.kv_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": config["model_type"],
            **{key: value for key, value in tokens.items() if value is not None},
            "context_length": context,
            "vocab_size": config["vocab_size"],
            "decoder": decoder,
        },
        "search": {"do_sample": False, "max_length": context, "past_present_share_buffer": False},
    }
