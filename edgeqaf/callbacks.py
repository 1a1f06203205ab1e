"""What a run does between its steps: write the log, show progress, heed signals."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from edgeqaf import ranks
from edgeqaf.console import Advance
from edgeqaf.staging import staged


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows each step and writes ``log.jsonl``: step, loss, learning rate; held-out loss where measured."""

    def __init__(self, log: Path, advance: Advance, measure: Callable[[float], dict[str, float]]) -> None:
        self.log, self.advance, self.measure = log, advance, measure
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop log lines beyond the step that a resumed run starts from, and one that a kill cut short."""
        if ranks.first():
            kept = [line for entry, line in read_log(self.log) if entry["step"] <= state.global_step]
            with staged(self.log, force=True) as part:
                part.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Append what is deterministic; timings stay out of the log."""
        entry: dict[str, float] = {
            key: logs[key] for key in ("loss", "learning_rate", "eval_loss") if logs and key in logs
        }
        if not entry:
            return
        if "eval_loss" in entry:
            entry |= self.measure(state.global_step / state.max_steps)
        if ranks.first():
            self._append({"step": state.global_step, **entry}, flush=control.should_save)
        if "loss" in entry:
            self._note = f"loss {entry['loss']:.3f}"
        elif "eval_loss" in entry:
            self._note += f", held-out {entry['eval_loss']:.3f}"
        self.advance(state.global_step, self._note)

    def _append(self, entry: dict[str, float], *, flush: bool) -> None:
        """Write a line; before a checkpoint, to the disk itself, as nothing would write it again."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            if flush:
                file.flush()
                os.fsync(file.fileno())


def read_log(log: Path) -> list[tuple[dict[str, Any], str]]:
    """Entries of ``log.jsonl`` with their lines, up to the first that is not whole."""
    found = []
    for line in log.read_text("utf-8", errors="replace").splitlines() if log.is_file() else []:
        try:
            found.append((json.loads(line), line))
        except ValueError:
            break
    return found


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """SIGINT and SIGTERM finish the step, save a checkpoint and stop; a second SIGINT stops at once.

    Ranks stop together, at the end of the step in which the first of them was told to.
    """

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
        self.stopped = ranks.anywhere(self.stopped)
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = True
