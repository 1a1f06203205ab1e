"""Hugging Face tensor names and shapes of a Llama model, and where GGUF keeps each.

llama.cpp rotates neighbouring pairs of a head's rows (RoPE "norm"), Hugging Face the two halves, so
q and k rows are interleaved in the file: row ``2 i + j`` of a head is logical row ``j head_dim / 2
+ i`` (llama.cpp conversion/llama.py, LlamaModel.permute). Whole rows move, codes and scales
together, so nothing is requantized. Names: gguf-py tensor_mapping.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeqaf.source import EMBEDDING, HEAD

ROPE_FACTORS = "rope_freqs.weight"  # derived from the config, no logical tensor
OUTPUT = "output.weight"  # absent where the head is tied to the embedding


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a Llama model."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True)
class Place:
    """One tensor: its logical name, its name in the file, its shape, and heads whose rows are interleaved (or 0)."""

    logical: str
    stored: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """`edgeqaf.protocols.Stored.rows`: row i of the file holds logical row rows[i]."""
        if not self.interleaved_heads:
            return None
        rows = np.arange(self.shape[0], dtype=np.int64)
        return rows.reshape(self.interleaved_heads, 2, -1).swapaxes(1, 2).reshape(-1)


def places(d: Dimensions, *, tied: bool) -> Iterator[Place]:
    """Every tensor of the model, in the order of the file."""
    yield Place(EMBEDDING, "token_embd.weight", (d.vocab, d.hidden))
    yield Place("model.norm.weight", "output_norm.weight", (d.hidden,))
    if not tied:
        yield Place(HEAD, OUTPUT, (d.vocab, d.hidden))
    wide, narrow = d.heads * d.head_dim, d.kv_heads * d.head_dim
    for layer in range(d.layers):
        for part, stored, shape, heads in (
            ("input_layernorm", "attn_norm", (d.hidden,), 0),
            ("self_attn.q_proj", "attn_q", (wide, d.hidden), d.heads),
            ("self_attn.k_proj", "attn_k", (narrow, d.hidden), d.kv_heads),
            ("self_attn.v_proj", "attn_v", (narrow, d.hidden), 0),
            ("self_attn.o_proj", "attn_output", (d.hidden, wide), 0),
            ("post_attention_layernorm", "ffn_norm", (d.hidden,), 0),
            ("mlp.gate_proj", "ffn_gate", (d.feed_forward, d.hidden), 0),
            ("mlp.up_proj", "ffn_up", (d.feed_forward, d.hidden), 0),
            ("mlp.down_proj", "ffn_down", (d.hidden, d.feed_forward), 0),
        ):
            yield Place(f"model.layers.{layer}.{part}.weight", f"blk.{layer}.{stored}.weight", shape, heads)
