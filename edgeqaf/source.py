"""Reading a float model in the Hugging Face layout: config.json and safetensors, one file or shards.

Names are made canonical here, once: a tied head exists only as ``model.embed_tokens.weight``,
however the checkpoint stored it. So are Gemma's norm weights, which count as ``1 + w``: what that sum
rounds off is dropped from w. Pickles are never loaded and remote code is never run.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
import numpy as np

from edgeqaf.companions import CONFIG, QUANTIZATION
from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from edgeqaf.shards import Shards

ENDS = EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SEPARATE = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
# model_type -> which tensors are linear weights of the decoder layers, to be quantized
LINEARS = {
    "gemma2": SEPARATE,
    "gemma3_text": SEPARATE,
    "llama": SEPARATE,
    "mistral": SEPARATE,
    "phi3": FUSED,
    "qwen2": SEPARATE,
    "qwen3": SEPARATE,
}
GEMMAS = ("gemma2", "gemma3_text")  # tied unless config.json says otherwise; their norms scale by 1 + w
LAYER = re.compile(r"model\.layers\.\d+\.(.+)\.weight")
FLOATS = ("F64", "F32", "F16", "BF16")


class FloatModel(Mapping[str, Floats]):
    """The float32 tensors of a Hugging Face folder, read one at a time, by canonical name.

    quantized: arrays that are parts of quantized tensors, and left out here -> the tensor each is a part of.

    Raises Refused for a folder that is not one, an unsupported architecture, a corrupt or truncated
    file, a missing shard, a tensor that is not float.
    """

    def __init__(self, folder: Path, quantized: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self.architecture = str(self.config["model_type"])
        if QUANTIZATION in self.config and not quantized:
            raise Refused(
                f"{folder / CONFIG} has a {QUANTIZATION}",
                "import it (edgeqaf quantize) or pass the float checkpoint; if its tensors are float, delete that key",
            )
        self._shards = Shards(folder)
        parts = quantized or {}
        self._quantized = frozenset(parts.values())
        # old checkpoints carry the rotary table; it follows from the config
        names = [name for name in self._shards if name not in parts and not name.endswith(".rotary_emb.inv_freq")]
        for name in names:
            self._require_float(name)
        self._stored = {name: name for name in names}
        self._make_head_canonical()

    def is_linear(self, name: str) -> bool:
        """Whether ``name`` is a linear weight of a decoder layer."""
        return is_linear(self.architecture, name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shards.shape(self._stored[name])

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`; no tensor is read for it."""
        return {name: ("float32", self.shape(name)) for name in self}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._stored))

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Floats:
        return self.rows(name)(0, *(self.shape(name)[:1] or (1,))).reshape(self.shape(name))

    def rows(self, name: str) -> Callable[[int, int], Floats]:
        """`edgeqaf.runs.ByRows`."""
        stored = self._stored[name]

        def read(start: int, stop: int) -> Floats:
            with np.errstate(over="ignore"):  # a float64 too large becomes infinite, and is refused below
                values = self._shards.rows(stored, start, stop).astype(np.float32)
            if not np.isfinite(values).all():
                index = tuple(int(i[0]) for i in np.nonzero(~np.isfinite(values)))
                where = [start + index[0], *index[1:]]
                raise Refused(f"{name}{where} is {values[index]}", "the checkpoint is damaged; fetch it again")
            if self.architecture in GEMMAS and name.endswith("norm.weight"):
                values = (np.float32(1) + values) - np.float32(1)  # Gemma multiplies by this sum, in float32
            return values

        return read

    def _require_float(self, name: str) -> None:
        dtype, shape = self._shards.dtype(name), list(self._shards.shape(name))
        if dtype not in FLOATS:
            raise Refused(
                f"{self._shards.path(name)}: {name} is {dtype}, not a float type",
                "pass the float checkpoint, not a quantized one",
            )
        if (name in ENDS or self.is_linear(name)) and len(shape) != 2:
            raise Refused(
                f"{self._shards.path(name)}: {name} has shape {shape}, not [out, in]",
                "the checkpoint is damaged; fetch it again",
            )

    def _make_head_canonical(self) -> None:
        tied = is_tied(self.config)
        if tied and HEAD in self._quantized:
            raise Refused(f"{HEAD} is quantized though config.json ties it", "fix tie_word_embeddings in config.json")
        if EMBEDDING not in self._stored and HEAD in self._stored and tied:
            self._stored[EMBEDDING] = self._stored.pop(HEAD)
        if tied and HEAD in self._stored:
            if not np.array_equal(self[HEAD], self[EMBEDDING]):
                raise Refused(
                    f"{HEAD} and {EMBEDDING} differ though config.json ties them",
                    "fix tie_word_embeddings in config.json",
                )
            del self._stored[HEAD]
        self._require_whole([EMBEDDING, "model.norm.weight", *([] if tied else [HEAD])])

    def _require_whole(self, names: list[str]) -> None:
        layers = range(int(self.config.get("num_hidden_layers", 0)))
        names += [f"model.layers.{i}.{part}.weight" for i in layers for part in LINEARS[self.architecture]]
        missing = [name for name in names if name not in self._stored and name not in self._quantized]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise Refused(
                f"{self.folder}: no tensor {', '.join(missing[:3])}{more}",
                "the checkpoint is incomplete; fetch it again",
            )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder; refused where there is none, or of an unsupported architecture."""
    if not folder.is_dir():
        raise Refused(
            f"{folder} is not a folder",
            "pass a model folder in the Hugging Face layout (config.json, *.safetensors)",
        )
    config = read_json(folder / CONFIG)
    if str(config.get("model_type")) not in LINEARS:
        raise Refused(
            f"{folder / CONFIG}: architecture {str(config.get('model_type'))!r} is not supported",
            f"supported: {', '.join(sorted(LINEARS))}",
        )
    return config


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a config.json makes the embedding serve as the head too."""
    return bool(config.get("tie_word_embeddings", config.get("model_type") in GEMMAS))


def has_bias(config: Mapping[str, Any], layer: str) -> bool:
    """Whether a linear layer (``model.layers.0.mlp.up_proj``) has a bias in a model of this config.json."""
    *_, block, part = ("", *layer.split("."))
    if config.get("model_type") == "qwen2":
        return part in ("q_proj", "k_proj", "v_proj")
    return bool(config.get({"self_attn": "attention_bias", "mlp": "mlp_bias"}.get(block, ""), False))


def is_linear(architecture: str, name: str) -> bool:
    """Whether a tensor of that name is a linear weight of a decoder layer, to be quantized."""
    found = LAYER.fullmatch(name)
    return found is not None and found[1] in LINEARS[architecture]
