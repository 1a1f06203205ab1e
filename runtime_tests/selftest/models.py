"""Small seeded Llamas, one for a grid: every code, both ends of the model tied, a tokenizer of bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Floats, Tensor
from edgeqaf.grid import Grid, Zero
from edgeqaf.parts import join
from edgeqaf.qtensor import QTensor, check

HIDDEN, LAYERS, HEADS, KV_HEADS = 256, 4, 4, 2  # 256: the largest block, so that every grid fits
SPECIAL = ("<s>", "</s>")
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
WIDTH = 0.1  # of a weight's values: activations keep their size from layer to layer
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, HIDDEN), "mlp.up_proj": (HIDDEN, HIDDEN), "mlp.down_proj": (HIDDEN, HIDDEN),
}  # fmt: skip


def model(folder: Path, grids: list[Grid], seed: int) -> QModel:
    """A model whose layers take turns on ``grids``; its config and tokenizer are written into ``folder``."""
    rng = np.random.default_rng(seed)
    vocabulary = _write_companions(folder)
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": rng.normal(0, 0.1, (vocabulary, HIDDEN)).astype(np.float32),
        "model.norm.weight": _norm(rng),
    }
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        for name, shape in SHAPES.items():
            tensors[f"{place}.{name}.weight"] = matrix(grids[layer % len(grids)], shape, rng)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}.{name}.weight"] = _norm(rng)
    return QModel(json.loads((folder / "config.json").read_text("utf-8")), tensors, folder)


def matrix(grid: Grid, shape: tuple[int, int], rng: np.random.Generator) -> QTensor:
    """Any codes; scales that make weights of about `WIDTH`, and zeros near the middle of the codes: [out, in]."""
    out, inputs = shape
    blocks, middle = (out, inputs // grid.block), (grid.lo + grid.hi + 1) / 2
    codes = rng.integers(grid.lo, grid.hi, shape, endpoint=True).astype(np.int8)
    scale = WIDTH / (grid.hi - grid.lo) * rng.uniform(0.5, 1.5, blocks)
    if grid.levels is not None:
        supers = (out, inputs // grid.levels.block)
        most, parts = grid.levels.scale[1], {"codes": codes}
        parts["scales"] = rng.integers(max(1, most // 2), most, blocks, endpoint=True).astype(np.int8)
        parts["d"] = (WIDTH / (grid.hi - grid.lo) / most * rng.uniform(1, 2, supers)).astype(np.float16)
        if grid.levels.zero:
            most = grid.levels.zero[1]
            parts["mins"] = rng.integers(max(1, most // 2), most, blocks, endpoint=True).astype(np.int8)
            parts["dmin"] = (WIDTH / 2 / most * rng.uniform(1, 2, supers)).astype(np.float16)
        return check(join(grid, parts))
    zero: NDArray[Any] | None = None
    if grid.zero is Zero.OFFSET:
        zero = (-middle * scale * rng.uniform(0.8, 1.2, blocks)).astype(np.float16)
    elif grid.zero is Zero.CODE:
        zero = rng.integers(grid.lo, grid.hi, blocks, endpoint=True).astype(np.int8)
    parts = {"codes": codes, "scale": scale.astype(np.float16), **({} if zero is None else {"zero": zero})}
    return check(join(grid, parts))


def _norm(rng: np.random.Generator) -> Floats:
    return rng.normal(1, 0.1, HIDDEN).astype(np.float32)


def _write_companions(folder: Path) -> int:
    """config.json and a byte-level tokenizer; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ("o", "n")]
    vocabulary = {text: i for i, text in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(text, i) for i, text in enumerate(SPECIAL)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS, "vocab_size": len(vocabulary),
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "dtype": "float32", **ends,
    }  # fmt: skip
    settings = dict(zip(("bos_token", "eos_token"), SPECIAL, strict=True)) | {"chat_template": TEMPLATE}
    for name, content in (
        ("config", config), ("tokenizer_config", settings), ("generation_config", ends),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1), "utf-8")
    return len(vocabulary)
