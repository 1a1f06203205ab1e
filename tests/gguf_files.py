"""A Llama in a GGUF file by gguf-py, as another maker's tool would write it: any types, any alignment, any split."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import gguf
import numpy as np
from on_grid import on_grid
from tokenizers import pre_tokenizers

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import EdgeqafError
from edgeqaf.parts import split
from exporters.gguf.artifact import StoredTensors
from exporters.gguf.base import ImportedTensors
from exporters.gguf.blocks import pack
from exporters.gguf.frame import Frame, save_frame
from exporters.gguf.layouts import LAYOUTS

GGML = gguf.GGMLQuantizationType
HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB = 256, 2, 4, 2, 300
WORDS = ["he", "ll", "hell", "hello", "Ġt", "Ġth", "Ġthe"]


def bytes_to_unicode() -> list[str]:
    """GPT-2's 256 characters for bytes, as every byte-level vocabulary begins."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write(path: Path, kinds: list[GGML], *, tied: bool = False, embedding: GGML = GGML.F16, alignment: int = 32,
          split: Mapping[str, int] | None = None, **metadata: object) -> Path:  # fmt: skip
    """A Llama file by gguf-py: matrices of ``kinds`` in turn, F32 norms, metadata that we know nothing of.

    split: how gguf-py is to split it, as its writer takes that; then the first file is returned.
    """
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama", **(split or {}))
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_name("Somebody's model")
    writer.add_array("somebody.numbers", [1.5, 2.5])
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = bytes_to_unicode() + WORDS
    tokens += [f"<unused{i}>" for i in range(VOCAB - len(tokens) - 1)] + ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(metadata.get("pre", "gpt-2")))
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (VOCAB - 1) + [3])
    writer.add_token_merges(["h e", "l l", "he ll", "hell o", "Ġ t", "Ġt h", "Ġth e"])
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_chat_template("{{ messages }}")
    writer.add_file_type(15)
    turn = iter(kinds * 99)
    narrow = HIDDEN * KV_HEADS // HEADS
    _add(writer, "token_embd.weight", (VOCAB, HIDDEN), embedding, rng)
    _add(writer, "output_norm.weight", (HIDDEN,), GGML.F32, rng)
    if not tied:
        _add(writer, "output.weight", (VOCAB, HIDDEN), next(turn), rng)
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            _add(writer, f"blk.{i}.{name}.weight", (HIDDEN,), GGML.F32, rng)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            out = narrow if name in ("attn_k", "attn_v") else HIDDEN
            _add(writer, f"blk.{i}.{name}.weight", (out, HIDDEN), next(turn), rng)
    return _close(writer, path)


def write_least(path: Path, split: Mapping[str, int] | None = None) -> Path:
    """The least Llama a file can hold: one layer, a header of some 1,300 bytes, no tokenizer. split: see `write`."""
    rng, hidden = np.random.default_rng(0), 32
    writer = gguf.GGUFWriter(path, "llama", **(split or {}))
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    shapes = {"token_embd": (8, hidden), "output_norm": (hidden,)}
    shapes |= {f"blk.0.{name}_norm": (hidden,) for name in ("attn", "ffn")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (hidden, hidden) for name in matrices}
    for name, shape in shapes.items():
        kind = GGML.F32 if len(shape) == 1 else GGML.Q4_0
        values = rng.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    return _close(writer, path)


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first: Path = writer.format_shard_names(path)[0]
    return first


def given_back(path: Path, folder: Path) -> list[bytes] | None:
    """What the files of a model come back as, imported and exported; None where they are refused."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    try:
        stored = StoredTensors(path)
        save_frame(stored, folder)
        planned = Frame(QModel({}, ImportedTensors(stored), folder))
        made = [BytesIO() for _ in planned.parts]
        for part, file in zip(planned.parts, made, strict=True):
            part.write(file, planned.put)
    except EdgeqafError:
        return None
    return [file.getvalue() for file in made]


def _add(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: GGML, rng: np.random.Generator) -> None:
    values = (rng.standard_normal(shape) * 0.05).astype(np.float32)
    layout = LAYOUTS.get(kind)
    if layout is not None and layout.scales is not None:  # gguf-py reads K-quants and does not make them
        grid = plugins.find("grids", layout.grid)
        writer.add_tensor(
            name, pack(grid, split(on_grid(values, grid))).view(np.uint8).reshape(shape[0], -1), raw_dtype=kind
        )
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
