"""peft over our layers: a LoRA beside the integers, and a plain word where peft cannot help.

peft chooses a LoRA layer by the type of the layer it wraps, from a list that no registry extends; the
last entry of that list is wrapped here. Imported by `edgeqaf.hf` right after ``peft.tuners.lora.model``.
"""

from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from edgeqaf.errors import Refused
from edgeqaf.hf import PEFT_TYPE
from edgeqaf.nn import QLinear


class LoraOverGrid(Linear):  # type: ignore[misc]
    """LoRA beside a `QLinear`: y = layer(x) + scaling * B A x."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[Any, Any]:
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[torch.device, torch.dtype]:
        """Without decoding the weights to ask them."""
        return base_layer.scale.device, base_layer.scale.dtype

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: peft would add to decoded weights that nobody keeps, and the adapter would be gone."""
        raise Refused(
            f"a LoRA cannot be merged into the integers of grid {self.get_base_layer().grid.name}",
            "keep it beside the model, or measure the loss: edgeqaf eval BASE --lora ADAPTER --requantize",
        )


class NoPeftConfig:
    """What peft finds for an adapter of ours that is no LoRA: peft has no layer that computes it."""

    def __init__(self, **values: Any) -> None:
        raise Refused(
            "the adapter lives on its base's grid; peft has no layer for it",
            "fold it in: edgeqaf merge RUN -o merged, then from_pretrained('merged')",
        )

    @classmethod
    def from_pretrained(cls, folder: str, **values: Any) -> "NoPeftConfig":
        return cls(**values)


def _over_grids(default: Any) -> Any:
    def dispatch(target: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> nn.Module | None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(base, QLinear):
            return LoraOverGrid(target, adapter_name, config=config, **kwargs)
        other: nn.Module | None = default(target, adapter_name, config=config, **kwargs)
        return other

    return dispatch


lora_model.dispatch_default = _over_grids(lora_model.dispatch_default)
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = NoPeftConfig
