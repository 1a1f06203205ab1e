"""Methods together: ``lowrank+scale`` gives each layer both adapters, provided no slot has two writers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, create_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from edgeqaf import plugins
from edgeqaf.adapter import Adapter
from edgeqaf.errors import UsageError
from edgeqaf.gradient import Flow
from edgeqaf.grid import Slot
from edgeqaf.method import Course, Method, Options, method_of
from edgeqaf.nn import QLinear
from edgeqaf.packed import Packed
from edgeqaf.qtensor import Delta, QTensor


class Combined(Adapter):
    """One layer's adapters by method name. Each proposes its delta to the same base; the slots differ."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        super().__init__()
        writer: dict[Slot, str] = {}
        for name, part in adapters.items():
            self.add_module(name, part)
            for slot in part.writes:
                if slot in writer:
                    raise UsageError(
                        f"{'+'.join(adapters)}: {writer[slot]} and {name} both write {slot.value}",
                        "combine methods that write different slots",
                    )
                writer[slot] = name
        self.writes = frozenset().union(*(part.writes for part in adapters.values()))

    def parts(self) -> list[Any]:
        return list(self.children())

    def delta(self, q: QTensor, rows: slice) -> Delta:
        """The parts' deltas side by side."""
        found = Delta()
        for part in self.parts():
            proposed = part.delta(q, rows)
            found = replace(found, **{slot.value: getattr(proposed, slot.value) for slot in part.writes})
        return found

    def fold_packed(self, base: Packed) -> Packed:
        """Each part's fold of its own slots."""
        folded = base
        for part in self.parts():
            own = part.fold_packed(base)
            folded = replace(folded, **{slot.value: getattr(own, slot.value) for slot in part.writes})
        return folded

    def changed(self) -> None:
        for part in self.parts():
            part.changed()

    def active(self) -> bool:
        return any(part.active() for part in self.parts())

    def gradients(self, layer: QLinear, flow: Flow) -> list[Tensor | None]:
        """Every part's gradients in order; dL/dW is formed once where several need it.

        A part without parameters moves its integers at once: it comes last, so that the others' are of the forward.
        """
        flow = replace(flow, shared={})
        counts = {part: len(list(part.parameters())) for part in self.parts()}
        found: dict[Any, list[Tensor | None]] = {}
        for part in sorted(counts, key=lambda part: counts[part] == 0):
            found[part] = part.gradients(layer, flow) if part.active() else [None] * counts[part]
        return [grad for part in counts for grad in found[part]]


class Together(torch.optim.Optimizer):
    """Several optimizers as one: their parameter groups in a row, their states side by side."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._join()


class Schedules(LRScheduler):
    """Several schedules stepped as one."""

    def __init__(self, schedules: list[LRScheduler]) -> None:
        self.schedules = schedules

    def step(self, epoch: int | None = None) -> None:
        for schedule in self.schedules:
            schedule.step()

    def get_last_lr(self) -> list[Any]:
        return [lr for schedule in self.schedules for lr in schedule.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        return {"schedules": [schedule.state_dict() for schedule in self.schedules]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for schedule, state in zip(self.schedules, state_dict["schedules"], strict=True):
            schedule.load_state_dict(state)


class CombinedMethod(Method):
    """The methods of a name such as ``lowrank+scale``; options live under each method's name."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods

    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> Combined:
        return Combined({name: m.layer(base, getattr(options, name), generator) for name, m in self.methods.items()})

    def prepare(self, model: nn.Module, options: Any) -> None:
        for name, method in self.methods.items():
            method.prepare(model, getattr(options, name))

    def begin(self, model: nn.Module, options: Any) -> None:
        for name, method in self.methods.items():
            method.begin(model, getattr(options, name))

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, LRScheduler]:
        pairs = [m.optimizer(model, getattr(options, name), course) for name, m in self.methods.items()]
        return Together([o for o, _ in pairs]), Schedules([s for _, s in pairs])

    def describe(self, model: nn.Module) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for method in self.methods.values():
            for name, figures in method.describe(model).items():
                found.setdefault(name, {}).update(figures)
        return found


def combine(name: str, values: Mapping[str, Any]) -> tuple[CombinedMethod, Options]:
    """The combined method and its options: ``scale.lr=0.02`` is scale's; a bare ``lr`` is the first method's."""
    names = name.split("+")
    given: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in values.items():
        part, dot, rest = key.partition(".")
        if isinstance(value, Mapping) and key in given:
            given[key] |= value
        elif dot and part in given:
            given[part][rest] = value
        elif dot:
            raise UsageError(f"{name}: option {key} names no part of it", f"parts: {', '.join(names)}")
        else:
            given[names[0]][key] = value
    methods: dict[str, Method] = {}
    options: dict[str, Options] = {}
    for part in names:
        method, options[part] = method_of(part, given[part])
        if not isinstance(method, Method) or part in methods:
            lossless = [n for n in plugins.names("adapters") if plugins.find("adapters", n).lossless]
            raise UsageError(
                f"{name}: {part} {'appears twice' if part in methods else 'is no lossless method'}",
                f"combine some of {', '.join(lossless)}, each once",
            )
        methods[part] = method
    model: Any = create_model(
        "CombinedOptions", __base__=Options, **{n: (type(o), Field(o)) for n, o in options.items()}
    )  # type: ignore[call-overload]
    return CombinedMethod(methods), model(**options)
