"""Parts of transformers' models in the form a graph should have: attention, its masks, rotations.

Each computes what transformers does. Attention takes its grouped heads as rows of one matmul, so that no step
copies the cache once for each group. A mask is made from indices, once for each kind of layer. Frequencies that
follow the length of the sequence are chosen by a value in the graph; transformers keeps them on the module.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

NAMES = {21: "edgeqaf_plain", 23: "edgeqaf_operator"}  # of the attention, by opset; for `edgeqaf.modeling.skeleton`


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """One attention: [batch, new, kv_heads, group, size], where heads are kv_heads times group.

    query: [batch, heads, new, size]; key, value: [batch, kv_heads, total, size]; attention_mask: see `mask`.
    """
    batch, heads, new, size = query.shape
    kv_heads = key.shape[1]
    rows = heads // kv_heads * new
    scores = query.reshape(batch, kv_heads, rows, size) * scaling @ key.transpose(2, 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.reshape(batch, heads, new, -1) + attention_mask
    weights = torch.softmax(scores, -1).reshape(batch, kv_heads, rows, -1)
    return (weights @ value).reshape(batch, kv_heads, -1, new, size).permute(0, 3, 1, 2, 4), None


def operate(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """`attend` as one operator; but versions of it differ in whether a softcap comes before the mask."""
    if more.get("softcap") is not None:
        return attend(module, query, key, value, attention_mask, scaling, **more)
    return torch.onnx.ops.attention(query, key, value, attention_mask, scale=scaling)[0].transpose(1, 2), None


def mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor,
    dtype: torch.dtype,
    **_: Any,
) -> Tensor:
    """What is added to the scores: 0 where a token is seen, the lowest number elsewhere; [batch, 1, new, total].

    mask_function: of batch, head, query and key indices; attention_mask: bool [batch, total], false for padding.
    """
    rows, columns = torch.arange(q_length) + q_offset, torch.arange(kv_length)
    seen = mask_function(0, 0, rows[:, None], columns[None])[None] & attention_mask[:, None]
    return torch.where(seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)[:, None]


def rotate_by_length(model: Any) -> None:
    """Let frequencies that follow the length of the sequence (longrope, dynamic) be functions of the positions."""
    rotary = model.model.rotary_emb
    if rotary.rope_type not in ("longrope", "dynamic"):
        return
    kind, config, short = rotary.rope_type, rotary.config, rotary.original_inv_freq
    original = config.rope_parameters.get("original_max_position_embeddings")

    def choose(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        positions = named["position_ids"] if "position_ids" in named else arguments[1]
        length = positions.max() + 1
        if kind == "dynamic":
            rotary.inv_freq, _ = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
        else:
            long, _ = ROPE_INIT_FUNCTIONS[kind](config, seq_len=original + 1)
            rotary.inv_freq = torch.where(length > original, long, short)

    del rotary.inv_freq  # a buffer could not hold a value of the graph
    rotary.rope_type = "default"  # so that transformers leaves the frequencies alone
    rotary.register_forward_pre_hook(choose, with_kwargs=True)


for opset, attention in ((21, attend), (23, operate)):
    AttentionInterface.register(NAMES[opset], attention)
    AttentionMaskInterface.register(NAMES[opset], mask)
