"""LoRA (arXiv 2106.09685) through peft: the usual road, kept as a baseline.

Its delta is a float matrix that no grid holds, so ``lossless`` is False: `merge` refuses it, and
``edgeqaf eval --requantize`` measures what is left of it once merged and quantized again.
"""

import warnings
from typing import Any

import peft
import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.method import Baseline, Course, Options, adamw, trainable
from edgeqaf.nn import QLinear, qlinears


class LoraOptions(Options):
    """rank: r; alpha: scaling numerator (alpha / r); lr: AdamW's."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
    lr: float = Field(0.002, gt=0, allow_inf_nan=False)


class LoraMethod(Baseline):
    """See the module's docstring."""

    options = LoraOptions

    def attach(self, model: nn.Module, options: Any, seed: int) -> nn.Module:
        """Let peft wrap each quantized layer, which stays packed as it is for every other method."""
        targets = [name.removesuffix(".weight") for name in qlinears(model)]
        config = peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=0.0, target_modules=targets)
        config._register_custom_module({QLinear: peft.tuners.lora.Linear})
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that our layer is none of peft's own
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, model)
        return model

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        return adamw(trainable(model).values(), options.lr, course)

    def merged_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """float32 [out, in] by tensor name: base plus delta, as a 16-bit merge would store it."""
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.Linear)]
        return {
            f"{name}.weight": (m.base_layer.weight + m.get_delta_weight("default")).detach().bfloat16().float()
            for name, m in sorted(layers)
        }


adapter = LoraMethod()
