"""Which models the graph can hold, told from config.json alone, before any work.

To carry one more family, name its ``model_type`` in `ARCHITECTURES`: the program itself is transformers'
(`exporters.onnx.trace`). onnxruntime-genai calls its decoders by the same names.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edgeqaf.errors import Refused

ARCHITECTURES = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu", "silu")
LAYERS = ("full_attention", "sliding_attention")
BY_LENGTH = ("dynamic", "longrope", "su")  # their frequencies follow the length of the sequence
ROTATIONS = ("default", "linear", "llama3", "yarn", *BY_LENGTH)
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
REMEDY = "export a model without it, or leave ONNX out"


def check(config: Mapping[str, Any]) -> None:
    """Refuse, by name, a config.json whose model the graph cannot hold."""
    found = config.get("model_type")
    if found not in ARCHITECTURES:
        raise Refused(f"architecture {found!r} has no ONNX export", f"supported: {', '.join(ARCHITECTURES)}")
    for key in SIZES:
        if not isinstance(size := config.get(key), int) or size < 1:
            raise Refused(f"config.json: {key} is {size!r}", "fix config.json")
    for key in ("hidden_act", "hidden_activation"):
        if config.get(key) is not None:
            _require(f"config.json: {key} is", config[key], ACTIVATIONS)
    for kind in config.get("layer_types") or ():
        _require("config.json: layer_types has", kind, LAYERS)
    for layers, rope in _rotations(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        _require("config.json: rope type is", kind, ROTATIONS)
        if layers and kind in BY_LENGTH:
            raise Refused(f"config.json: {layers} layers rotate by {kind!r}, the others do not", REMEDY)
    if config.get("use_bidirectional_attention"):
        raise Refused("config.json: use_bidirectional_attention is set; a decoder with a cache looks back only", REMEDY)


def _rotations(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rope parameters with the kind of layers they are for, "" where that is all."""
    for key in ("rope_parameters", "rope_scaling"):
        stated = config.get(key) or {}
        if not isinstance(stated, Mapping):
            raise Refused(f"config.json: {key} is {stated!r}", "fix config.json")
        nested = {kind: rope for kind, rope in stated.items() if isinstance(rope, Mapping)}
        yield from nested.items() if nested else [("", stated)]


def _require(cause: str, found: Any, known: tuple[str, ...]) -> None:
    if found not in known:
        raise Refused(f"{cause} {found!r}; ONNX export knows {', '.join(known)}", REMEDY)
