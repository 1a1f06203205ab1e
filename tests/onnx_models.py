"""Small models for tests of the ONNX exporter."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Tensor
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.grid import Zero
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor
from exporters.onnx import exporter

GRIDS = [name for name in plugins.names("grids") if exporter.refuses(plugins.find("grids", name)) is None]
# (grid, form, activations), but codes of 8 bits with activations of 8 bits in the form qdq: refused
WAYS = [
    (grid, form, activations)
    for grid in GRIDS
    for form in ("qdq", "matmulnbits")
    for activations in ("float", "int8")
    if not (plugins.find("grids", grid).bits == 8 and (form, activations) == ("qdq", "int8"))
]
# Two layers, grouped heads, and down_proj rows (80) that no block divides, so they stay float.
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
K_PROJ = "model.layers.0.self_attn.k_proj.weight"


def random_tensor(rng: np.random.Generator, grid_name: str, shape: tuple[int, int]) -> QTensor:
    """Any codes, with parameters over all of float16: subnormals, zeros of both signs, both ends."""
    grid = plugins.find("grids", grid_name)
    blocks = (shape[0], shape[1] // grid.block)

    def halves() -> np.ndarray:
        bits = rng.integers(0, 0x7C00, blocks) | (rng.integers(0, 2, blocks) << 15)
        bits[0, 0] = 0x8000
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    codes = rng.integers(grid.lo, grid.hi + 1, shape).astype(np.int8)
    points = rng.integers(grid.lo, grid.hi + 1, blocks).astype(np.int8)
    zero = {Zero.NONE: lambda: None, Zero.CODE: lambda: points.astype(np.float32), Zero.OFFSET: halves}[grid.zero]()
    return QTensor(grid, codes, halves(), zero)


def tiny(folder: Path, grid: str, ends: str = "float", **asked: object) -> QModel:
    """ends: float, or on the grid: tied, untied. asked: of `OnnxOptions`."""
    rng = np.random.default_rng(7)
    config = CONFIG | {"hidden_size": max(CONFIG["hidden_size"], plugins.find("grids", grid).unit)}
    h, ff = config["hidden_size"], config["intermediate_size"]
    kv = h // 2
    linears = {"self_attn.q": (h, h), "self_attn.k": (kv, h), "self_attn.v": (kv, h), "self_attn.o": (h, h)}
    linears |= {"mlp.gate": (ff, h), "mlp.up": (ff, h), "mlp.down": (h, ff)}
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": rng.standard_normal((96, h)).astype(np.float32),
        "model.norm.weight": rng.standard_normal(h).astype(np.float32),
    }
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = rng.standard_normal(h).astype(np.float32)
        for name, shape in linears.items():
            fits = plugins.find("grids", grid).fits(shape[1])
            value = random_tensor(rng, grid, shape) if fits else rng.standard_normal(shape).astype(np.float32)
            tensors[f"model.layers.{layer}.{name}_proj.weight"] = value
    if ends != "float":
        tensors["model.embed_tokens.weight"] = random_tensor(rng, grid, (96, h))
    if ends == "untied":
        config["tie_word_embeddings"] = False
        tensors["lm_head.weight"] = random_tensor(rng, grid, (96, h))
    (folder / "config.json").write_text(json.dumps(config))
    return QModel(config, tensors, folder, asked=ExportOptions(onnx=OnnxOptions(**asked)))  # type: ignore[arg-type]


def root(path: Path) -> str:
    """The root of an exported folder, read by runs of rows."""
    return Artifact("onnx", path, exporter.read_back(path), path).root


def modest(model: QModel) -> QModel:
    """The model with scales as real models have them, within a factor of two: few bits hold a row's weights."""
    rng = np.random.default_rng(3)

    def some(shape: tuple[int, ...]) -> np.ndarray:
        return (rng.uniform(1, 2, shape) / 256).astype(np.float16).astype(np.float32)

    def changed(q: QTensor) -> QTensor:
        scale = some(q.scale.shape)
        return QTensor(q.grid, q.codes, scale, -4 * scale if q.grid.zero is Zero.OFFSET else q.zero)

    tensors = {name: changed(t) if isinstance(t, QTensor) else t for name, t in model.tensors.items()}
    return replace(model, tensors=tensors)
