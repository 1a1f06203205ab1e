"""One training run of the bench: the product's model, methods and optimizers, batch by batch."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeqaf.bench.contenders import FULL
from edgeqaf.data import IGNORED, Example
from edgeqaf.data.batches import Collator
from edgeqaf.method import Course, Options, Tuning, adamw, adapter_state
from edgeqaf.plan import moment_bytes, tensor_bytes
from edgeqaf.source import is_linear

HELD_OUT_TIMES = 3  # that the held-out loss is taken in a run; the last one is the score
WARM = 5  # steps that are not timed


@dataclass
class Record:
    """A run: (step, loss) of training and of the held-out rows; seconds of each step, by the clock and of the CPU."""

    training: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: int = 0

    def step_ms(self) -> dict[str, float]:
        """Medians."""
        times = {"wall": self.wall, "cpu": self.cpu}
        return {name: 1000 * statistics.median(found[WARM:] or found or [0.0]) for name, found in times.items()}


@dataclass(frozen=True)
class Trainee:
    """A model made trainable, with its optimizer. trained: every tensor that a file of the result would hold."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    trained: Mapping[str, Tensor]

    def trained_bytes(self) -> int:
        return tensor_bytes(self.trained.values())

    def state_bytes(self) -> int:
        """What training keeps beside the base: what is trained, and the optimizer's moments."""
        return self.trained_bytes() + moment_bytes(self.optimizer)


def attached(model: nn.Module, method: Tuning, options: Options, seed: int, steps: int) -> Trainee:
    """``model`` with a method of the product."""
    model = method.attach(model, options, seed)
    method.begin(model, options)
    optimizer, schedule = method.optimizer(model, options, Course(steps))
    return Trainee(model, optimizer, schedule, adapter_state(model))


def in_float(model: nn.Module, architecture: str, contender: str, lr: float, steps: int) -> Trainee:
    """``model`` without quantization, every parameter trained, or only those that others quantize."""
    chosen = {n: p for n, p in model.named_parameters() if contender == FULL or is_linear(architecture, n)}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    optimizer, schedule = adamw(chosen.values(), lr, Course(steps))
    return Trainee(model, optimizer, schedule, chosen)


def run(trainee: Trainee, stream: Sequence[Sequence[Example]], pad: int, measure: Callable[[], float]) -> Record:
    """Train on each batch of ``stream``; ``measure`` takes the held-out loss on the way."""
    record, collate = Record(), Collator(pad)
    every = max(1, len(stream) // HELD_OUT_TIMES)
    for number, examples in enumerate(stream, 1):
        trainee.model.train()
        batch = collate(examples)
        wall, cpu = time.perf_counter(), time.process_time()
        loss = trainee.model(**batch).loss
        loss.backward()
        trainee.optimizer.step()
        trainee.schedule.step()
        trainee.optimizer.zero_grad()
        record.wall.append(time.perf_counter() - wall)
        record.cpu.append(time.process_time() - cpu)
        record.training.append((number, loss.item()))
        record.tokens += int((batch["labels"][:, 1:] != IGNORED).sum())
        if number % every == 0 and number + every <= len(stream):
            record.held_out.append((number, measure()))
    return record
