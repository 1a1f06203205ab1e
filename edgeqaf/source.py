"""Reading a float model in the Hugging Face layout: config.json and safetensors, one file or shards.

Names are made canonical here, once: a tied head exists only as ``model.embed_tokens.weight``,
however the checkpoint stored it. So are Gemma's norm weights, which count as ``1 + w``: what that sum
rounds off is dropped from w. Pickles are never loaded and remote code is never run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
import numpy as np
from safetensors import SafetensorError, safe_open

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
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
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


class FloatModel(Mapping[str, Floats]):
    """The float32 tensors of a Hugging Face folder, read one at a time, by canonical name.

    Raises Refused for a folder that is not one, an unsupported architecture, a corrupt or truncated
    file, a missing shard, a tensor that is not float.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise Refused(
                f"{folder} is not a folder",
                "pass a model folder in the Hugging Face layout (config.json, *.safetensors)",
            )
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self.architecture = str(self.config.get("model_type"))
        if self.architecture not in LINEARS:
            raise Refused(
                f"{folder / 'config.json'}: architecture {self.architecture!r} is not supported",
                f"supported: {', '.join(sorted(LINEARS))}",
            )
        if "quantization_config" in self.config:
            raise Refused(
                f"{folder / 'config.json'} has a quantization_config",
                "pass the float checkpoint, not a quantized one; if its tensors are float, delete that key",
            )
        self._files = dict(self._stored())
        self._make_head_canonical()

    def is_linear(self, name: str) -> bool:
        """Whether ``name`` is a linear weight of a decoder layer."""
        return is_linear(self.architecture, name)

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._files[name]
        return tuple(file.get_slice(stored).get_shape())

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`; no tensor is read for it."""
        return {name: ("float32", self.shape(name)) for name in self}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, name: str) -> Floats:
        file, stored = self._files[name]
        with np.errstate(over="ignore"):  # a float64 too large becomes infinite, and is refused below
            values = np.asarray(file.get_tensor(stored)).astype(np.float32)
        if not np.isfinite(values).all():
            index = tuple(int(i[0]) for i in np.nonzero(~np.isfinite(values)))
            raise Refused(f"{name}{list(index)} is {values[index]}", "the checkpoint is damaged; fetch it again")
        if self.architecture in GEMMAS and name.endswith("norm.weight"):
            values = (np.float32(1) + values) - np.float32(1)  # Gemma multiplies by this sum, in float32
        return values

    def _stored(self) -> Iterator[tuple[str, tuple[Any, str]]]:
        weight_map = self._weight_map()
        for path in [self.folder / shard for shard in sorted(set(weight_map.values()))] or [self.folder / WHOLE]:
            try:
                file = safe_open(path, framework="numpy")
                names = file.keys()
                for name in names:
                    if name.endswith(".rotary_emb.inv_freq"):
                        continue  # old checkpoints carry this table; it follows from the config
                    self._require_float(path, name, file.get_slice(name))
                    yield name, (file, name)
            except (OSError, SafetensorError) as error:
                raise Refused(f"{path}: {error}", "the file is missing, truncated or corrupt; fetch it again") from None
            for name in sorted({*names, *weight_map}):
                if (name in names) != (weight_map.get(name, path.name) == path.name):
                    raise Refused(
                        f"{path}: {name} is {'' if name in names else 'not '}there, contrary to the index",
                        "shards of two checkpoints are mixed; fetch it again",
                    )

    def _require_float(self, path: Path, name: str, stored: Any) -> None:
        if stored.get_dtype() not in FLOATS:
            raise Refused(
                f"{path}: {name} is {stored.get_dtype()}, not a float type",
                "pass the float checkpoint, not a quantized one",
            )
        if self.is_linear(name) and len(stored.get_shape()) != 2:
            raise Refused(
                f"{path}: {name} has shape {stored.get_shape()}, not [out, in]",
                "the checkpoint is damaged; fetch it again",
            )

    def _weight_map(self) -> dict[str, str]:
        """Tensor name -> file, as the index of a sharded checkpoint says; empty for one file."""
        index = self.folder / INDEX
        if not index.is_file():
            return {}
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Refused(f"{index} has no weight_map", "the index is malformed; fetch it again")
        for shard in weight_map.values():
            if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
                raise Refused(
                    f"{index}: shard {shard!r} is no file of the folder", "the index is malformed; fetch it again"
                )
        return weight_map

    def _make_head_canonical(self) -> None:
        tied = is_tied(self.config)
        if EMBEDDING not in self._files and HEAD in self._files and tied:
            self._files[EMBEDDING] = self._files.pop(HEAD)
        if tied and HEAD in self._files:
            if not np.array_equal(self[HEAD], self[EMBEDDING]):
                raise Refused(
                    f"{HEAD} and {EMBEDDING} differ though config.json ties them",
                    "fix tie_word_embeddings in config.json",
                )
            del self._files[HEAD]
        self._require_whole([EMBEDDING, "model.norm.weight", *([] if tied else [HEAD])])

    def _require_whole(self, names: list[str]) -> None:
        layers = range(int(self.config.get("num_hidden_layers", 0)))
        names += [f"model.layers.{i}.{part}.weight" for i in layers for part in LINEARS[self.architecture]]
        missing = [name for name in names if name not in self._files]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise Refused(
                f"{self.folder}: no tensor {', '.join(missing[:3])}{more}",
                "the checkpoint is incomplete; fetch it again",
            )


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a config.json makes the embedding serve as the head too."""
    return bool(config.get("tie_word_embeddings", config.get("model_type") in GEMMAS))


def is_linear(architecture: str, name: str) -> bool:
    """Whether a tensor of that name is a linear weight of a decoder layer, to be quantized."""
    found = LAYER.fullmatch(name)
    return found is not None and found[1] in LINEARS[architecture]
