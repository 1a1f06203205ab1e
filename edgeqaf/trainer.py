"""The training loop: transformers' Trainer, told what a checkpoint of ours holds.

Three things differ from the stock Trainer. A checkpoint holds the trained parameters only (the base
is on disk already), it appears whole or not at all, and an interrupt finishes the step and saves.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback

from edgeqaf.console import Advance
from edgeqaf.method import adapter_state
from edgeqaf.nn import qlinears
from edgeqaf.staging import staged

ADAPTER = "adapter_model.safetensors"
KEPT = 2  # checkpoints kept on disk


class GridTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose checkpoints live in ``folder`` as ``step-000100/``, staged and renamed."""

    def __init__(self, folder: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self._staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        target = self.folder / f"step-{self.state.global_step:06d}"
        with staged(target, force=True) as part:
            self._staging = part.with_suffix(".trainer")
            try:
                super()._save_checkpoint(model, trial)
                os.rename(self._staging / f"checkpoint-{self.state.global_step}", part)
            finally:
                shutil.rmtree(self._staging, ignore_errors=True)
                self._staging = None
        for old in checkpoints(self.folder)[:-KEPT]:
            shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
        save_file(parameters(self.model), Path(str(output_dir)) / ADAPTER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_parameters(self.model, Path(resume_from_checkpoint) / ADAPTER)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """What an adapter file holds, contiguous and on the CPU."""
    return {name: tensor.contiguous().cpu() for name, tensor in adapter_state(model).items()}


def load_parameters(model: torch.nn.Module, file: Path) -> None:
    """Fill what ``model`` trains from an adapter file with exactly those names."""
    from safetensors import SafetensorError

    from edgeqaf.errors import Refused

    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise Refused(f"{file}: {error}", "the adapter is missing, truncated or corrupt; train it again") from None
    wanted = adapter_state(model)
    wrong = sorted(
        name for name in stored.keys() | wanted.keys()
        if name not in stored or name not in wanted or stored[name].shape != wanted[name].shape
        or stored[name].dtype != wanted[name].dtype
    )  # fmt: skip
    if wrong:
        raise Refused(
            f"{file}: {len(wrong)} tensors do not fit the model, first {wrong[0]}",
            "it belongs to another base or method",
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])
    for layer in qlinears(model).values():
        layer.changed()


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows each step and writes ``log.jsonl``: step, loss, learning rate; held-out loss where measured."""

    def __init__(self, log: Path, advance: Advance, measure: Callable[[], dict[str, float]]) -> None:
        self.log, self.advance, self.measure = log, advance, measure
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop log lines beyond the step that a resumed run starts from."""
        lines = self.log.read_text("utf-8").splitlines() if self.log.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        self.log.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Append what is deterministic; timings stay out of the log."""
        entry: dict[str, float] = {
            key: logs[key] for key in ("loss", "learning_rate", "eval_loss") if logs and key in logs
        }
        if not entry:
            return
        if "eval_loss" in entry:
            entry |= self.measure()
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **entry}) + "\n")
        if "loss" in entry:
            self._note = f"loss {entry['loss']:.3f}"
        elif "eval_loss" in entry:
            self._note += f", held-out {entry['eval_loss']:.3f}"
        self.advance(state.global_step, self._note)


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """SIGINT and SIGTERM finish the step, save a checkpoint and stop; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.stopped = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
