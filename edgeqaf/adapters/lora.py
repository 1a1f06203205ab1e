"""LoRA (arXiv 2106.09685) through peft: the usual road, kept as a baseline.

Its delta is a float matrix that no grid holds, so ``lossless`` is False: `merge` refuses it, and
``edgeqaf eval --requantize`` measures what is left of it once merged and quantized again.
"""

from typing import Any

import peft
import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.method import Baseline, Options, warm_hold_decay
from edgeqaf.nn import qlinears


class LoraOptions(Options):
    """rank: r; alpha: scaling numerator (alpha / r); lr: AdamW's."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
    lr: float = Field(0.002, gt=0, allow_inf_nan=False)


class LoraMethod(Baseline):
    """See the module's docstring."""

    options = LoraOptions

    def attach(self, model: nn.Module, options: Any, seed: int) -> nn.Module:
        """Replace each quantized layer by its decoded weights in an ``nn.Linear`` that peft wraps."""
        targets = []
        for name, layer in qlinears(model).items():
            path = name.removesuffix(".weight")
            parent, _, child = path.rpartition(".")
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            linear.weight = nn.Parameter(layer.weight().detach(), requires_grad=False)
            linear.bias = layer.bias  # type: ignore[assignment]
            setattr(model.get_submodule(parent), child, linear)
            targets.append(path)
        config = peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=0.0, target_modules=targets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, model)
        return model

    def optimizer(self, parameters: list[Tensor], options: Any, steps: int) -> tuple[torch.optim.Optimizer, Any]:
        adam = torch.optim.AdamW(parameters, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
        return adam, warm_hold_decay(adam, steps)

    def merged_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """float32 [out, in] by tensor name: base plus delta, as a 16-bit merge would store it."""
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.Linear)]
        return {
            f"{name}.weight": (m.base_layer.weight + m.get_delta_weight("default")).detach().bfloat16().float()
            for name, m in sorted(layers)
        }


adapter = LoraMethod()
