"""A LoRA adapter that peft wrote elsewhere, put on a quantized base: the baseline people already have.

    adapter_config.json         r, lora_alpha, rank_pattern, alpha_pattern, use_rslora are read
    adapter_model.safetensors   base_model.model.LAYER.lora_A.weight [r, in], .lora_B.weight [out, r]

A layer then computes  x W^T + scaling (x A^T) B^T,  scaling = alpha / r, or alpha / sqrt(r) with rsLoRA
(arXiv 2312.03732). peft has many relatives of LoRA, and switches one on by a key of the config: so a key
that is not known to be without effect must have peft's default, or the adapter is refused by that key.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edgeqaf.adapters.lora import NAME, inject, wrapped
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from edgeqaf.nn import qlinears

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
INERT = {  # which layers there are is read from the tensors; the rest is of training, or names things
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "inference_mode",
    "base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "runtime_config",
}  # fmt: skip
STARTS = (True, False, "gaussian", "orthogonal")  # init_lora_weights that leave the base's weights alone
WHY = {
    "use_dora": "DoRA rescales the base's weights",
    "bias": "trained biases have no place beside the integers",
    "lora_bias": "trained biases have no place beside the integers",
    "modules_to_save": "whole layers were trained beside the LoRA",
    "init_lora_weights": "it began by changing the base's weights",
    "target_parameters": "it adapts what is no linear layer",
    "trainable_token_indices": "it adapts embeddings",
}
LARGEST_RANK = 4096
KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
PLAIN = re.compile(r"[\w.]+")
FLOATS = ("F32", "F16", "BF16")
BROKEN = "the adapter is damaged; fetch or save it again"


@dataclass(frozen=True)
class Shape:
    """One layer's rank and alpha, as the config says."""

    rank: int
    alpha: float


class AdapterConfig:
    """``adapter_config.json``, once it is known to be plain LoRA; raises Refused by the key that is not."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / CONFIG
        self._values = read_json(self.file)
        kind = self._values.get("peft_type")
        if kind != "LORA":
            raise Refused(f"{self.file}: peft_type is {kind!r}, not 'LORA'", "only LoRA adapters of peft are read")
        self._require_plain()
        self.rslora = self._values.get("use_rslora") is True
        r, alpha = self._values.get("r"), self._values.get("lora_alpha")
        self._default = Shape(self._rank("r", r), self._alpha("lora_alpha", alpha))
        self._ranks, self._alphas = self._pattern("rank_pattern"), self._pattern("alpha_pattern")

    def layer(self, path: str) -> Shape:
        """Rank and alpha of the layer at ``path``; the first fitting key of a pattern counts, as in peft."""
        rank = _fitting(self._ranks, path)
        alpha = _fitting(self._alphas, path)
        return Shape(
            self._default.rank if rank is None else self._rank(f"rank_pattern[{rank!r}]", self._ranks[rank]),
            self._default.alpha if alpha is None else self._alpha(f"alpha_pattern[{alpha!r}]", self._alphas[alpha]),
        )

    def _require_plain(self) -> None:
        defaults = {f.name: f.default for f in fields(peft.LoraConfig) if f.default is not MISSING}
        for key, value in sorted(self._values.items()):
            start = key == "init_lora_weights" and value in STARTS
            nothing = value is None or value is False or value in ([], {})
            if not (key in READ | INERT or start or nothing or value == defaults.get(key)):
                why = f": {WHY[key]}" if key in WHY else ""
                raise Refused(f"{self.file}: {key} is {value!r:.60}{why}", "only plain LoRA is read")

    def _rank(self, key: str, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= LARGEST_RANK:
            raise Refused(f"{self.file}: {key} is {value!r:.60}, not a rank of 1 to {LARGEST_RANK}", BROKEN)
        return value

    def _alpha(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not isfinite(value):
            raise Refused(f"{self.file}: {key} is {value!r:.60}, not a finite number", BROKEN)
        return float(value)

    def _pattern(self, key: str) -> dict[str, Any]:
        """Layer name, or its end -> value. peft takes regular expressions; those of strangers are not run here."""
        found = self._values.get(key) or {}
        if not isinstance(found, dict) or not all(PLAIN.fullmatch(name) for name in found):
            raise Refused(f"{self.file}: {key} is {found!r:.60}, not names with values", "write layer names in full")
        return found


def attach(model: nn.Module, folder: Path) -> nn.Module:
    """Put the adapter at ``folder`` on the quantized layers of ``model``, in place.

    Raises Refused for what is not plain LoRA, for a layer that the model lacks or keeps in float, and
    for tensors whose shapes are not the config's and the layer's.
    """
    config = AdapterConfig(folder)
    factors = _factors(folder, {name.removesuffix(".weight"): layer for name, layer in qlinears(model).items()}, config)
    shapes = {path: config.layer(path) for path in factors}
    with torch.random.fork_rng(devices=[]):  # peft draws what is overwritten below
        first = next(iter(shapes.values()))
        inject(
            model, sorted(factors), r=first.rank, lora_alpha=first.alpha, use_rslora=config.rslora,
            rank_pattern={path: s.rank for path, s in shapes.items() if s.rank != first.rank},
            alpha_pattern={path: s.alpha for path, s in shapes.items() if s.alpha != first.alpha},
        )  # fmt: skip
    with torch.no_grad():
        for path, layer in wrapped(model).items():
            layer.lora_A[NAME].weight.copy_(factors[path]["A"])
            layer.lora_B[NAME].weight.copy_(factors[path]["B"])
    return model


def _factors(folder: Path, layers: Mapping[str, Any], config: AdapterConfig) -> dict[str, dict[str, Tensor]]:
    """A [r, in] and B [out, r] of each adapted layer, float32 and finite."""
    file = folder / WEIGHTS
    if not file.is_file() and (folder / PICKLE).is_file():
        raise Refused(f"{folder / PICKLE} is a pickle", f"save the adapter with peft again, as {WEIGHTS}")
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(file, framework="pt") as stored:
            for key in sorted(stored.keys()):
                path, side = _place(file, key, layers)
                layer, rank = layers[path], config.layer(path).rank
                wanted = [rank, layer.in_features] if side == "A" else [layer.out_features, rank]
                _require_matrix(f"{file}: {key}", stored.get_slice(key), wanted)
                found.setdefault(path, {})[side] = values = stored.get_tensor(key).float()
                if not values.isfinite().all():
                    raise Refused(f"{file}: {key} has values that are not finite", BROKEN)
    except (OSError, SafetensorError) as error:
        raise Refused(f"{file}: {error}", BROKEN) from None
    for path, sides in found.items():
        if len(sides) < 2:
            raise Refused(f"{file}: {path} has lora_{min(sides)} but not the other factor", BROKEN)
    if not found:
        raise Refused(f"{file} holds no tensor", BROKEN)
    return found


def _place(file: Path, key: str, layers: Mapping[str, Any]) -> tuple[str, str]:
    """(layer, "A" or "B") of a tensor's name."""
    named = KEY.fullmatch(key)
    if named is None:
        raise Refused(f"{file}: {key} is no factor of a LoRA on a linear layer", "only plain LoRA is read")
    if named[1] not in layers:
        raise Refused(
            f"{file}: {named[1]} is no quantized layer of the base",
            "the adapter is of another model, or adapts layers that are kept in float: train it on the linear layers",
        )
    return named[1], named[2]


def _require_matrix(what: str, stored: Any, wanted: list[int]) -> None:
    shape, dtype = list(stored.get_shape()), stored.get_dtype()
    if shape != wanted or dtype not in FLOATS:
        raise Refused(
            f"{what} is {dtype} {shape}; the config's rank and the base make it {wanted}",
            "the adapter is of another model, or its two files are of two adapters",
        )


def _fitting(pattern: Mapping[str, Any], path: str) -> str | None:
    return next((key for key in pattern if f".{path}".endswith(f".{key}")), None)
