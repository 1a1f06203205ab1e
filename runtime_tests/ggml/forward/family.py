"""What a GGUF file says of the graph that llama.cpp builds for it, for the families that are written again here."""

from dataclasses import dataclass

import numpy as np

from edgeqaf.errors import RuntimeAbsent
from runtime_tests.ggml.file import GgufFile
from runtime_tests.ggml.forward.rotation import Rope

HALVES = {"llama": False, "qwen2": True, "qwen3": True}  # family -> whether pairs are of two halves of a head
UNKNOWN = (
    "attention.scale", "expert_count", "attn_logit_softcapping", "attention.sliding_window", "rope.scaling.attn_factor",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model's numbers.

    layers, heads, kv_heads, size: how many there are; floats of a head. epsilon: of the norms.
    """

    layers: int
    heads: int
    kv_heads: int
    size: int
    epsilon: float
    rope: Rope


def shape(file: GgufFile) -> Shape:
    """Of the model in ``file``; RuntimeAbsent for one whose graph is not written again, by name."""
    family = str(file.value("general.architecture"))
    if family not in HALVES:
        raise _unwritten(f"the family {family}")

    def number(key: str, default: float = 0) -> float:
        found = file.value(f"{family}.{key}")
        return default if found is None else float(found)

    unknown = [key for key in UNKNOWN if number(key)]
    scaling = file.value(f"{family}.rope.scaling.type") or "linear"
    if unknown or scaling not in ("linear", "none"):
        raise _unwritten(f"{family} with {unknown[0] if unknown else f'rope scaling {scaling}'}")
    heads, width = int(number("attention.head_count")), number("embedding_length")
    size = int(number("attention.key_length", width / heads))
    turned = int(number("rope.dimension_count", size))
    if (turned, number("attention.value_length", size)) != (size, size):
        raise _unwritten(f"{family} with heads that are not rotated whole, or of two sizes")
    factors = file.decode(file.tensor("rope_freqs.weight")) if file.has("rope_freqs.weight") else None
    stretch = number("rope.scaling.factor", number("rope.scale_linear")) if scaling == "linear" else 0
    scale = float(np.float32(1) / np.float32(stretch or 1))
    rope = Rope(number("rope.freq_base", 10000), size, HALVES[family], factors, scale)
    kv_heads = int(number("attention.head_count_kv", heads))
    epsilon = float(np.float32(number("attention.layer_norm_rms_epsilon")))
    return Shape(int(number("block_count")), heads, kv_heads, size, epsilon, rope)


def _unwritten(what: str) -> RuntimeAbsent:
    return RuntimeAbsent(
        f"no reproduction of {what}: its graph is not written again", f"families that are: {', '.join(HALVES)}"
    )
