"""A tuning method: how a model is made trainable, and how its parameters are moved.

Each file under ``edgeqaf/adapters`` exposes ``adapter``, an instance of a `Method`, which puts one
adapter on each quantized layer, or of a `Baseline`, which attaches itself in its own way.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from edgeqaf import plugins
from edgeqaf.adapter import Adapter
from edgeqaf.errors import UsageError
from edgeqaf.hf import PEFT_TYPE
from edgeqaf.nn import QLinear, qlinears
from edgeqaf.packed import Packed

Part = TypeVar("Part", bound=Adapter)


class Options(BaseModel):
    """A method's own options; unknown ones are refused by pydantic."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Course:
    """How a run goes: optimizer steps, and micro-batches gathered for each."""

    steps: int
    accumulate: int = 1


class Tuning(ABC):
    """What every method does. ``lossless``: its result folds into the integers exactly."""

    lossless: ClassVar[bool]
    options: ClassVar[type[Options]] = Options

    @abstractmethod
    def attach(self, model: nn.Module, options: Any, seed: int) -> nn.Module:
        """Make ``model`` trainable by this method; its parameters depend on seed and order of layers alone."""

    @abstractmethod
    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimizer and schedule of one run, for a model that this method was attached to."""

    def begin(self, model: nn.Module, options: Any) -> None:  # noqa: B027  most methods need nothing
        """What only a fresh run needs, once attached; a resumed one finds it in its adapter file."""

    def adapter_config(self, model: nn.Module) -> dict[str, Any]:
        """What peft reads in ``adapter_config.json``: here a type that is none of its own, so it takes us for none."""
        return {"peft_type": PEFT_TYPE, "task_type": "CAUSAL_LM"}

    def stored_name(self, name: str) -> str:
        """A parameter's name in the adapter file."""
        return name

    def describe(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Figures per layer that only this method knows (such as LoTA's threshold)."""
        return {}


class Method(Tuning):
    """A method that lives on the grid: one adapter a layer, folded exactly."""

    lossless = True

    @abstractmethod
    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> Adapter:
        """The adapter of one layer, its parameters drawn from ``generator``."""

    def attach(self, model: nn.Module, options: Any, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for layer in qlinears(model).values():
            layer.attach(self.layer(layer.base, options, generator))
        self.prepare(model, options)
        return model

    def prepare(self, model: nn.Module, options: Any) -> None:
        """What an adapter must know of the whole model, once every layer has its adapter."""


class Baseline(Tuning):
    """A method whose delta no grid holds: it trains, and is measured; merge refuses it."""

    lossless = False

    @abstractmethod
    def merged_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """float32 [out, in] by tensor name, as a 16-bit merge would store them."""


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that autograd trains, by name."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Exactly what an adapter file holds: trained parameters, and the buffers of our adapters."""
    found = {name: p.data for name, p in trainable(model).items()}
    for name, layer in qlinears(model).items():
        if layer.adapter is not None:
            path = name.removesuffix("weight") + "adapter."
            found |= {path + key: tensor.data for key, tensor in layer.adapter.state().items()}
    return dict(sorted(found.items()))


def parts(model: nn.Module, kind: type[Part]) -> list[tuple[QLinear, Part]]:
    """Every adapter of one kind, alone on its layer or one of several, with the layer."""
    layers = [layer for layer in qlinears(model).values() if layer.adapter is not None]
    return [(layer, part) for layer in layers for part in layer.adapter.modules() if isinstance(part, kind)]


def adamw(parameters: Iterable[Tensor], lr: float, course: Course) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW (0.9, 0.99) without weight decay, warmed up, held and decayed."""
    optimizer = torch.optim.AdamW(list(parameters), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    return optimizer, warm_hold_decay(optimizer, course.steps)


def warm_hold_decay(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 10, hold: float = 0.3) -> LambdaLR:
    """Linear warm-up over ``warmup`` steps, constant to the share ``hold`` of the run, then linear to 0."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup)
        return rise if step < hold * steps else rise * max(0.0, (steps - step) / ((1 - hold) * steps))

    return LambdaLR(optimizer, factor)


def method_of(name: str, values: Mapping[str, Any]) -> tuple[Tuning, Options]:
    """The method called ``name`` and its options, validated; UsageError names a wrong one.

    ``lowrank+scale`` combines methods that write different slots (`edgeqaf.combine`).
    """
    if "+" in name:
        from edgeqaf.combine import combine

        return combine(name, values)
    method: Tuning = plugins.find("adapters", name)
    try:
        return method, method.options.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(f"{k}={v.default}" for k, v in method.options.model_fields.items())
        raise UsageError(
            f"{name}: option {'.'.join(map(str, first['loc']))}: {first['msg']}", f"options: {known}"
        ) from None
