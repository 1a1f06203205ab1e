"""Tune a quantized base: attach a method, train it with the transformers Trainer, write a run folder.

    finetune.json                 the settings, the base's root and the data's digest, written first
    log.jsonl                     loss at every step, held-out loss where measured
    checkpoints/step-000100/      the last two, each whole or absent
    adapter_config.json           method, its options, seed
    adapter_model.safetensors     the trained parameters
    edgeqaf.json                  written last: kind "run", parent root, digest of every tensor as folded
                                  at the end of training, how far each layer moved, final losses

A run resumed from any checkpoint ends in the same bits as one never interrupted (same thread count).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from edgeqaf import __version__, checkpoint
from edgeqaf.checkpoint import FORMAT, MANIFEST
from edgeqaf.console import progress, say
from edgeqaf.data import Example, read_rows, tokenize
from edgeqaf.digest import file_sha256
from edgeqaf.errors import Interrupted, Refused
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.method import Options, Tuning, method_of, trainable
from edgeqaf.modeling import build
from edgeqaf.movement import layer_movements, require_moved, total
from edgeqaf.nn import qlinears
from edgeqaf.run import CHECKPOINTS, CONFIG, LOG, SETTINGS, folded_digests
from edgeqaf.staging import require_new, staged
from edgeqaf.tokenizer import Tokenizer
from edgeqaf.trainer import (
    ADAPTER,
    Collator,
    GridTrainer,
    Interrupt,
    Progress,
    checkpoints,
    load_parameters,
    parameters,
)

STATE = "trainer_state.json"


@dataclass(frozen=True)
class Settings:
    """One run's settings; all that decides its bits, beside the base and the data.

    batch: rows per micro-batch; accumulate: micro-batches per step; max_length: tokens a row may
    have; holdout: share of rows (at most 256) kept for the held-out loss when no file is given;
    eval_every, save_every: in optimizer steps; options: the method's own.
    """

    method: str = "lowrank"
    steps: int = 300
    batch: int = 16
    accumulate: int = 1
    max_length: int = 256
    seed: int = 0
    holdout: float = 0.05
    eval_every: int = 100
    save_every: int = 100
    threads: int = 0
    columns: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def finetune(base: Path, data: Path, out: Path, settings: Settings, *, eval_data: Path | None = None,
             resume: bool = False, force: bool = False) -> dict[str, Any]:  # fmt: skip
    """Train and write the run folder ``out``; return its manifest.

    Raises VerificationFailed when the run is inert, Interrupted when stopped by a signal (its
    checkpoint is then on disk), Refused for a resume with other settings, base or data.
    """
    model_folder = checkpoint.load(base)
    method, options = method_of(settings.method, settings.options)
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    rows, held_out, too_long = _examples(data, eval_data, settings, Tokenizer(base))
    record = _record(base, model_folder.root, data, eval_data, settings, out)
    checkpoint.verify(model_folder)
    model = method.attach(build(model_folder.config, model_folder.tensors), options, settings.seed)
    _open_run(out, record, resume=resume, force=force)
    if (out / MANIFEST).is_file():
        say(f"{out} is already complete")
        return checkpoint.read_manifest(out)
    say(
        f"{len(rows)} rows to train on, {len(held_out)} held out"
        + (f", {too_long} left out as too long" if too_long else "")
    )
    with progress(f"finetune {settings.method}", settings.steps) as advance:
        trainer = _trainer(out, model, method, options, settings, rows, held_out, Tokenizer(base).pad, advance)
        _train(trainer, model, next(reversed(checkpoints(out / CHECKPOINTS)), None))
    if any(isinstance(c, Interrupt) and c.stopped for c in trainer.callback_handler.callbacks):
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {settings.steps}", "run the same command with --resume"
        )
    return _finish(out, model, method, options, settings, record, trainer)


def plan(base: Path, data: Path, settings: Settings) -> dict[str, int]:
    """What a run would do and take: rows, parameters to train, bytes of memory and disk (estimates)."""
    model_folder = checkpoint.load(base)
    method, options = method_of(settings.method, settings.options)
    rows, held_out, too_long = _examples(data, None, settings, Tokenizer(base))
    model = method.attach(build(model_folder.config, model_folder.tensors), options, settings.seed)
    trained = sum(p.numel() for p in trainable(model).values())
    weights = sum(layer.in_features * layer.out_features for layer in qlinears(model).values())
    floats = sum(p.numel() for p in model.parameters()) - trained
    return {
        "rows": len(rows), "rows_held_out": len(held_out), "rows_too_long": too_long, "steps": settings.steps,
        "trained_parameters": trained, "checkpoint_bytes": 12 * trained,
        # codes, then per weight the float32 intermediates that autograd keeps; parameters with AdamW's moments
        "memory_bytes": 17 * weights + 4 * floats + 16 * trained,
    }  # fmt: skip


def _examples(
    data: Path, eval_data: Path | None, settings: Settings, tokenizer: Tokenizer
) -> tuple[list[Example], list[Example], int]:
    """Training examples, held-out examples, and how many rows were too long."""
    examples, too_long = tokenize(read_rows(data, settings.columns), tokenizer, settings.max_length)
    if eval_data is not None:
        held_out, _ = tokenize(read_rows(eval_data, settings.columns), tokenizer, settings.max_length)
        return examples, held_out, too_long
    count = min(256, int(settings.holdout * len(examples)))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return [examples[i] for i in order[count:]], [examples[i] for i in order[:count]], too_long


def _record(base: Path, root: str, data: Path, eval_data: Path | None, settings: Settings, out: Path) -> dict[str, Any]:
    def sha(path: Path | None) -> str | None:
        return None if path is None else file_sha256(path)

    return {
        **asdict(settings), "columns": list(settings.columns), "options": dict(settings.options),
        "base": os.path.relpath(base, out), "base_root": root, "data": sha(data), "eval_data": sha(eval_data),
    }  # fmt: skip


def _open_run(out: Path, record: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Make the run folder, or check that a resumed one is the same run."""
    if resume and (out / SETTINGS).is_file():
        before = read_json(out / SETTINGS)
        changed = [key for key in record if key != "base" and before.get(key) != record[key]]
        if changed:
            key = changed[0]
            raise Refused(
                f"{out} was started with {key} = {before.get(key)!r}, not {record[key]!r}",
                "resume with the settings, base and data it was started with, or choose another output",
            )
        return
    require_new(out, force)
    with staged(out, force=force) as part:
        (part / CHECKPOINTS).mkdir(parents=True)
        write_json(part / SETTINGS, record)


def _trainer(out: Path, model: nn.Module, method: Tuning, options: Options, settings: Settings,
             rows: list[Example], held_out: list[Example], pad: int, advance: Any) -> GridTrainer:  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS), max_steps=settings.steps, per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch, gradient_accumulation_steps=settings.accumulate, max_grad_norm=0.0,
        seed=settings.seed, data_seed=settings.seed, logging_steps=1, logging_nan_inf_filter=False,
        eval_strategy="steps" if held_out else "no", eval_steps=settings.eval_every, prediction_loss_only=True,
        save_strategy="steps", save_steps=settings.save_every, disable_tqdm=True, report_to=[], use_cpu=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip

    def measure() -> dict[str, float]:
        moved = total(layer_movements(model))
        return {"moved": moved.share} if moved.weights else {}

    trainer = GridTrainer(
        out / CHECKPOINTS, model=model, args=arguments, train_dataset=rows, eval_dataset=held_out or None,
        data_collator=Collator(pad), callbacks=[Progress(out / LOG, advance, measure), Interrupt()],
        optimizers=method.optimizer(list(trainable(model).values()), options, settings.steps),
    )  # fmt: skip
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _write(path: Path, value: dict[str, Any]) -> None:
    with staged(path, force=True) as part:
        write_json(part, value)


def _train(trainer: GridTrainer, model: nn.Module, last: Path | None) -> None:
    """Train from the checkpoint ``last`` (or from the start) to the end."""
    if last is not None and TrainerState.load_from_json(str(last / STATE)).global_step >= trainer.args.max_steps:
        load_parameters(model, last / ADAPTER)  # transformers would take one step too many
        trainer.state = TrainerState.load_from_json(str(last / STATE))
        return
    trainer.train(resume_from_checkpoint=None if last is None else str(last))


def _final_losses(out: Path, trainer: GridTrainer) -> tuple[float, float | None]:
    """Mean training loss of the last tenth of the run, and the held-out loss at its end."""

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (out / LOG).read_text("utf-8").splitlines()]

    steps = trainer.args.max_steps
    losses = [entry["loss"] for entry in read() if "loss" in entry][-max(1, steps // 10) :]
    if trainer.eval_dataset and not any("eval_loss" in e and e["step"] == steps for e in read()):
        trainer.evaluate()
    held_out = [entry["eval_loss"] for entry in read() if "eval_loss" in entry][-1:]
    return sum(losses) / len(losses), held_out[0] if held_out else None


def _finish(out: Path, model: nn.Module, method: Tuning, options: Options, settings: Settings,
            record: dict[str, Any], trainer: GridTrainer) -> dict[str, Any]:  # fmt: skip
    """Write adapter and manifest; then judge the run."""
    from safetensors.torch import save_file

    movements = layer_movements(model)
    loss, held_out = _final_losses(out, trainer)
    about = method.describe(model)
    layers = {name: asdict(m) | about.get(name, {}) for name, m in movements.items()}
    manifest = {
        "format": FORMAT, "kind": "run", "parent": record["base_root"], "method": settings.method,
        "lossless": method.lossless, "folded": folded_digests(model), "layers": layers,
        "training_loss": loss, "held_out_loss": held_out, "steps": settings.steps,
        "tool": {"edgeqaf": __version__, "torch": torch.__version__},
    }  # fmt: skip
    with staged(out / ADAPTER, force=True) as part:
        save_file(parameters(model), part)
    _write(out / CONFIG, {"method": settings.method, "options": options.model_dump(), "seed": settings.seed})
    _write(out / MANIFEST, manifest)
    if method.lossless:
        require_moved(total(movements), settings.method)
    return manifest
