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
from edgeqaf.data.batches import Collator, PackedCollator, packs, require_apart
from edgeqaf.data.reading import digest, read_rows
from edgeqaf.data.split import Split, remarks, split
from edgeqaf.errors import Interrupted, Refused
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.method import Course, Options, Tuning, method_of
from edgeqaf.modeling import build
from edgeqaf.movement import layer_movements, require_moved, total
from edgeqaf.run import CHECKPOINTS, CONFIG, LOG, SETTINGS, folded_digests
from edgeqaf.staging import require_new, staged
from edgeqaf.tokenizer import Tokenizer
from edgeqaf.trackers import require_trackers, write_into
from edgeqaf.trainer import ADAPTER, GridTrainer, Interrupt, Progress, checkpoints, load_parameters, parameters

STATE = "trainer_state.json"


@dataclass(frozen=True)
class Settings:
    """One run's settings; all that decides its bits, beside the base and the data.

    batch: rows per micro-batch, or, with packing, sequences of several rows; accumulate: micro-batches
    per step; max_length: tokens a row may have; holdout: share of rows (at most 256) kept for the held-out
    loss when no file is given; eval_every, save_every: in optimizer steps; options: the method's own.
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
    packing: bool = False
    drop_duplicates: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def finetune(base: Path, data: Path | str, out: Path, settings: Settings, *, eval_data: Path | str | None = None,
             resume: bool = False, force: bool = False, report_to: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """Train and write the run folder ``out``; return its manifest.

    data, eval_data: what `edgeqaf.data.read_rows` reads. report_to: trackers that transformers knows by name.
    Raises VerificationFailed when the run is inert, Interrupted when stopped by a signal (its
    checkpoint is then on disk), Refused for a resume with other settings, base or data.
    """
    require_trackers(report_to)
    model_folder = checkpoint.load(base)
    method, options = method_of(settings.method, settings.options)
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    tokenizer = Tokenizer(base)
    rows, digests = read(data, eval_data, settings, tokenizer)
    record = _record(base, model_folder.root, digests, settings, out)
    checkpoint.verify(model_folder)
    model = method.attach(build(model_folder.config, model_folder.tensors), options, settings.seed)
    if settings.packing:
        require_apart(model, model_folder.config["model_type"])
    _open_run(out, record, resume=resume, force=force)
    if (out / MANIFEST).is_file():
        say(f"{out} is already complete")
        return checkpoint.read_manifest(out)
    _announce(rows, settings)
    with progress(f"finetune {settings.method}", settings.steps) as advance:
        trainer = _trainer(out, model, method, options, settings, rows, tokenizer.pad, advance, report_to)
        _train(trainer, model, next(reversed(checkpoints(out / CHECKPOINTS)), None))
    if any(isinstance(c, Interrupt) and c.stopped for c in trainer.callback_handler.callbacks):
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {settings.steps}", "run the same command with --resume"
        )
    return _finish(out, model, method, options, settings, record, rows, trainer)


def read(
    data: Path | str, eval_data: Path | str | None, settings: Settings, tokenizer: Tokenizer
) -> tuple[Split, dict[str, str | None]]:
    """The data of a run, divided; and the digests of ``data`` and ``eval_data``."""
    rows = read_rows(data, settings.columns)
    held_out = None if eval_data is None else read_rows(eval_data, settings.columns)
    digests = {
        "data": digest(data, rows),
        "eval_data": None if eval_data is None or held_out is None else digest(eval_data, held_out),
    }
    divided = split(
        rows, held_out, tokenizer, settings.max_length, share=settings.holdout, seed=settings.seed,
        drop_duplicates=settings.drop_duplicates,
    )  # fmt: skip
    return divided, digests


def _announce(rows: Split, settings: Settings) -> None:
    say(f"{len(rows.train)} rows to train on, {len(rows.held_out)} held out")
    for remark in remarks(rows.counts, settings.max_length, dropped=settings.drop_duplicates):
        say(remark)


def _record(base: Path, root: str, digests: dict[str, str | None], settings: Settings, out: Path) -> dict[str, Any]:
    return {
        **asdict(settings), "columns": list(settings.columns), "options": dict(settings.options),
        "base": os.path.relpath(base, out), "base_root": root, **digests,
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


def batched(rows: Split, settings: Settings, pad: int) -> tuple[list[Any], list[Any], Any]:
    """(training items, held-out items, collator): examples padded, or packed; held-out ones never share a sequence."""
    if settings.packing:
        return packs(rows.train, settings.max_length), [[e] for e in rows.held_out], PackedCollator(pad)
    return rows.train, rows.held_out, Collator(pad)


def _trainer(out: Path, model: nn.Module, method: Tuning, options: Options, settings: Settings, rows: Split, pad: int,
             advance: Any, report_to: Sequence[str]) -> GridTrainer:  # fmt: skip
    train, held_out, collator = batched(rows, settings, pad)
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS), max_steps=settings.steps, per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch, gradient_accumulation_steps=settings.accumulate, max_grad_norm=0.0,
        seed=settings.seed, data_seed=settings.seed, logging_steps=1, logging_nan_inf_filter=False,
        eval_strategy="steps" if held_out else "no", eval_steps=settings.eval_every, prediction_loss_only=True,
        save_strategy="steps", save_steps=settings.save_every, disable_tqdm=True, report_to=[], use_cpu=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    arguments.report_to = list(report_to)  # transformers adds to it where a cluster's environment asks for it

    def measure() -> dict[str, float]:
        moved = total(layer_movements(model))
        return {"moved": moved.share} if moved.weights else {}

    trainer = GridTrainer(
        out / CHECKPOINTS, model=model, args=arguments, train_dataset=train, eval_dataset=held_out or None,
        data_collator=collator, callbacks=[Progress(out / LOG, advance, measure), Interrupt()],
        optimizers=method.optimizer(model, options, Course(settings.steps, settings.accumulate)),
    )  # fmt: skip
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    write_into(out, trainer.callback_handler.callbacks)
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
            record: dict[str, Any], rows: Split, trainer: GridTrainer) -> dict[str, Any]:  # fmt: skip
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
        "rows": asdict(rows.counts) | {"held_out": len(rows.held_out)},
        "tool": {"edgeqaf": __version__, "torch": torch.__version__},
    }  # fmt: skip
    with staged(out / ADAPTER, force=True) as part:
        save_file(parameters(model), part)
    _write(out / CONFIG, {"method": settings.method, "options": options.model_dump(), "seed": settings.seed})
    _write(out / MANIFEST, manifest)
    if method.lossless:
        require_moved(total(movements), settings.method)
    return manifest
