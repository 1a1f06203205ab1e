"""Llama folders as other tools quantize them: each format written number by number, after its own definition.

Nothing here is shared with what reads them. A word is a sum of ``code << bits * place``.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

HIDDEN, INNER, KEYS, VOCAB = 128, 256, 64, 96
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Linear:
    """One layer: unsigned codes [out, in] and zeros [out, groups] of ``bits``, scales [out, groups], group or -1."""

    codes: np.ndarray
    zero: np.ndarray
    scale: np.ndarray
    group: int
    bits: int = 4

    @property
    def weights(self) -> np.ndarray:
        """What every one of the formats defines, with exact arithmetic: float32 [out, in]."""
        inputs = self.codes.shape[1]
        of = np.arange(inputs) // (inputs if self.group == -1 else self.group)
        exact = (self.codes.astype(np.int64) - self.zero[:, of]) * self.scale[:, of].astype(np.float64)
        assert np.array_equal(exact.astype(np.float32), exact)
        return exact.astype(np.float32)


def linear(rng: np.random.Generator, shape: tuple[int, int], group: int = 32, *, symmetric: bool = False,
           bits: int = 4, lowest: int = 0) -> Linear:  # fmt: skip
    """Any codes; zeros from ``lowest`` up, or all the middle one; positive float16 scales."""
    out, inputs = shape
    groups = 1 if group == -1 else -(-inputs // group)
    zero = rng.integers(lowest, 1 << bits, (out, groups))
    scale = rng.uniform(1e-3, 4e-2, (out, groups)).astype(np.float16)
    return Linear(rng.integers(0, 1 << bits, shape), np.full_like(zero, 1 << (bits - 1)) if symmetric else zero,
                  scale, group, bits)  # fmt: skip


def words(values: np.ndarray, bits: int, axis: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Unsigned integers along ``axis`` as int32 words, padded with zeros; place i holds ``order[i]``'s."""
    each = 32 // bits
    moved = np.moveaxis(np.asarray(values, np.int64), axis, -1)
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -moved.shape[-1] % each)])
    split = padded.reshape(*padded.shape[:-1], -1, each)
    total = sum(split[..., place] << (bits * i) for i, place in enumerate(order or range(each)))
    return np.ascontiguousarray(np.moveaxis(total.astype(np.uint32).view(np.int32), -1, axis))


def gptq(layer: Linear, v2: bool = False) -> Arrays:
    """auto_gptq QuantLinear.pack; with v2, without its ``zeros -= 1``."""
    inputs = layer.codes.shape[1]
    return {
        "qweight": words(layer.codes.T, layer.bits, 0),
        "qzeros": words(layer.zero.T - (0 if v2 else 1), layer.bits, 1),
        "scales": np.ascontiguousarray(layer.scale.T),
        "g_idx": (np.arange(inputs) // (inputs if layer.group == -1 else layer.group)).astype(np.int32),
    }


def gptq_v2(layer: Linear) -> Arrays:
    return gptq(layer, v2=True)


def awq(layer: Linear) -> Arrays:
    """awq WQLinear_GEMM.from_linear."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(layer.codes.T, 4, 1, order),
        "qzeros": words(layer.zero.T, 4, 1, order),
        "scales": np.ascontiguousarray(layer.scale.T),
    }


def packed(layer: Linear) -> Arrays:
    """compressed_tensors PackedQuantizationCompressor.compress: signed integers, stored plus the middle."""
    arrays = {
        "weight_packed": words(layer.codes, layer.bits, 1),
        "weight_scale": layer.scale,
        "weight_shape": np.array(layer.codes.shape, np.int64),
    }
    if (layer.zero == 1 << (layer.bits - 1)).all():
        return arrays
    return arrays | {"weight_zero_point": words(layer.zero, layer.bits, 0)}


def gptq_settings(group: int, symmetric: bool, bits: int = 4) -> dict[str, object]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": False}


def gptq_v2_settings(group: int, symmetric: bool, bits: int = 4) -> dict[str, object]:
    return gptq_settings(group, symmetric, bits) | {"checkpoint_format": "gptq_v2"}


def awq_settings(group: int, symmetric: bool, bits: int = 4) -> dict[str, object]:
    return {
        "quant_method": "awq", "bits": bits, "group_size": group, "zero_point": not symmetric, "version": "gemm",
        "modules_to_not_convert": None,
    }  # fmt: skip


def packed_settings(group: int, symmetric: bool, bits: int = 4) -> dict[str, object]:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group, "actorder": None, "dynamic": False,
    }  # fmt: skip
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed",
    }  # fmt: skip


@dataclass(frozen=True)
class Format:
    """lowest: the smallest zero that the format can say."""

    write: Callable[[Linear], Arrays]
    settings: Callable[..., dict[str, object]]
    lowest: int = 0


FORMATS = {
    "gptq": Format(gptq, gptq_settings, lowest=1),
    "gptq_v2": Format(gptq_v2, gptq_v2_settings),
    "awq": Format(awq, awq_settings),
    "compressed-tensors": Format(packed, packed_settings),
}


@dataclass(frozen=True)
class Folder:
    """A checkpoint, and what it stands for."""

    path: Path
    linears: Mapping[str, Linear]
    floats: Mapping[str, np.ndarray] = field(default_factory=dict)

    def settings(self, **changes: object) -> None:
        """Edit its quantization_config; None deletes a key."""
        config = json.loads((self.path / "config.json").read_text("utf-8"))
        settings = config["quantization_config"] | changes
        config["quantization_config"] = {key: value for key, value in settings.items() if value is not None}
        (self.path / "config.json").write_text(json.dumps(config), "utf-8")

    def config(self, **changes: object) -> None:
        """Edit its config.json."""
        config = json.loads((self.path / "config.json").read_text("utf-8"))
        (self.path / "config.json").write_text(json.dumps(config | changes), "utf-8")

    def arrays(self, changes: Mapping[str, np.ndarray | None]) -> None:
        """Replace, add or, with None, remove stored arrays."""
        arrays = load_file(self.path / "model.safetensors") | dict(changes)
        save_file({name: value for name, value in arrays.items() if value is not None},
                  self.path / "model.safetensors")  # fmt: skip

    def __getitem__(self, array: str) -> np.ndarray:
        return load_file(self.path / "model.safetensors")[array]


def folder(path: Path, name: str, group: int = 32, *, symmetric: bool = False, bits: int = 4) -> Folder:
    """A one-layer Llama in a format of `FORMATS`; embedding, norms and head are floats."""
    rng, form = np.random.default_rng(5), FORMATS[name]
    floats = {
        "model.embed_tokens.weight": rng.normal(0, 0.1, (VOCAB, HIDDEN)).astype(np.float16),
        "lm_head.weight": rng.normal(0, 0.1, (VOCAB, HIDDEN)).astype(np.float16),
        "model.norm.weight": rng.normal(1, 0.1, HIDDEN).astype(ml_dtypes.bfloat16),
        "model.layers.0.input_layernorm.weight": rng.normal(1, 0.1, HIDDEN).astype(np.float16),
        "model.layers.0.post_attention_layernorm.weight": rng.normal(1, 0.1, HIDDEN).astype(np.float16),
    }
    linears = {
        f"model.layers.0.{part}": linear(rng, shape, group, symmetric=symmetric, bits=bits, lowest=form.lowest)
        for part, shape in LINEARS.items()
    }
    path.mkdir()
    config = CONFIG | {"quantization_config": form.settings(group, symmetric, bits)}
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    _save(path, floats, linears, form)
    return Folder(path, linears, floats)


def quantized(source: Path, path: Path, name: str, group: int, *, symmetric: bool) -> Folder:
    """The float model in ``source`` with random integers for its decoder's linear layers; the rest is copied."""
    rng, form = np.random.default_rng(6), FORMATS[name]
    shutil.copytree(source, path)
    stored = load_file(path / "model.safetensors")
    floats = {name: values for name, values in stored.items() if "_proj." not in name}
    linears = {
        name.removesuffix(".weight"): linear(rng, values.shape, group, symmetric=symmetric, lowest=form.lowest)
        for name, values in stored.items()
        if "_proj." in name
    }
    config = json.loads((path / "config.json").read_text("utf-8"))
    config["quantization_config"] = form.settings(group, symmetric)
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    _save(path, floats, linears, form)
    return Folder(path, linears, floats)


def _save(path: Path, floats: Mapping[str, np.ndarray], linears: Mapping[str, Linear], form: Format) -> None:
    arrays = {f"{name}.{part}": array for name, layer in linears.items() for part, array in form.write(layer).items()}
    save_file({**floats, **arrays}, path / "model.safetensors", metadata={"format": "pt"})
