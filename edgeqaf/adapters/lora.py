"""LoRA (arXiv 2106.09685) through peft: the usual road, kept as a baseline.

Its delta is a float matrix that no grid holds, so ``lossless`` is False: `merge` refuses it, and
``edgeqaf eval --requantize`` measures what is left of it once merged and quantized again. Its run
folder is an adapter that peft itself loads over the same base (`edgeqaf.hf`).
"""

from typing import Any

import peft
import torch
from pydantic import Field
from torch import Tensor, nn

from edgeqaf.hf.lora import LoraOverGrid
from edgeqaf.method import Baseline, Course, Options, adamw, trainable
from edgeqaf.nn import QLinear, qlinears

NAME = "default"  # peft's, for the adapter of a model that has one


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
        alpha = int(options.alpha) if options.alpha.is_integer() else options.alpha  # as peft writes it in files
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return inject(model, targets(model), r=options.rank, lora_alpha=alpha)

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, Any]:
        return adamw(trainable(model).values(), options.lr, course)

    def merged_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """float32 [out, in] by tensor name: base plus delta, as a 16-bit merge would store it."""
        return {
            f"{name}.weight": (m.base_layer.weight + m.get_delta_weight(NAME)).detach().bfloat16().float()
            for name, m in wrapped(model).items()
        }

    def adapter_config(self, model: nn.Module) -> dict[str, Any]:
        """peft's own, so that peft takes the run folder for what it is."""
        config: dict[str, Any] = model.peft_config[NAME].to_dict()  # type: ignore[index,union-attr]
        sets = {key: sorted(value) for key, value in config.items() if isinstance(value, set)}
        return config | sets | {"inference_mode": True}

    def stored_name(self, name: str) -> str:
        """peft's name in a file: without the adapter's, below two wrappers."""
        return f"base_model.model.{name.replace(f'.{NAME}.', '.')}"


def inject(model: nn.Module, modules: list[str], **settings: Any) -> nn.Module:
    """Put an untrained LoRA on the named modules, in place; settings are `peft.LoraConfig`'s."""
    config = peft.LoraConfig(target_modules=modules, lora_dropout=0.0, task_type="CAUSAL_LM", **settings)
    wrapped: nn.Module = peft.inject_adapter_in_model(config, model, NAME)
    return wrapped


def targets(model: nn.Module) -> list[str]:
    """Names for peft of every quantized layer: their last parts, where those mean no other layer."""
    paths = [name.removesuffix(".weight") for name in qlinears(model)]
    leaves = {path.rpartition(".")[2] for path in paths}
    others = {name.rpartition(".")[2] for name, layer in model.named_modules() if not isinstance(layer, QLinear)}
    return sorted(paths if leaves & others else leaves)


def wrapped(model: nn.Module) -> dict[str, LoraOverGrid]:
    """The layers that carry a LoRA, by the name that the bare layer had, sorted."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraOverGrid)}
    return dict(sorted(found.items()))


adapter = LoraMethod()
