"""Tune a quantized base: attach a method, train it with the transformers Trainer, write a run folder.

    finetune.json                 the settings, the base's root and the data's digest, written first
    log.jsonl                     loss at every step, held-out loss where measured
    checkpoints/step-000100/      the last two, each whole or absent
    adapter_config.json           what peft reads: of LoRA its own config, else a type that it does not know
    adapter_model.safetensors     the trained parameters
    edgeqaf.json                  written last: kind "run", parent root, method, its options, seed, digest of
                                  every tensor as folded at the end of training, movements, final losses

A run resumed from any checkpoint ends in the same bits as one never interrupted (same thread count). Started
by torchrun or accelerate, all ranks run `finetune`; the first one writes and speaks (`edgeqaf.ranks`).
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from edgeqaf import __version__, checkpoint, ranks
from edgeqaf.attribution import attribute
from edgeqaf.callbacks import Interrupt, Progress, read_log
from edgeqaf.checkpoint import FORMAT, MANIFEST
from edgeqaf.console import be_quiet, progress, say
from edgeqaf.data.split import remarks
from edgeqaf.errors import Interrupted, Refused
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.method import Course
from edgeqaf.movement import early_hint, hints, layer_movements, require_moved, total
from edgeqaf.nn import qlinears
from edgeqaf.order import Order
from edgeqaf.prepare import Prepared, Settings, batched, prepare, require_alike
from edgeqaf.resume import ADAPTER, STATE, checkpoints, load_parameters, parameters
from edgeqaf.run import CHECKPOINTS, CONFIG, LOG, SETTINGS, folded_digests
from edgeqaf.sharding import assembled, shard, take_over, wanted
from edgeqaf.staging import require_new, staged
from edgeqaf.trackers import require_trackers, write_into
from edgeqaf.trainer import GridTrainer, require_same_everywhere

__all__ = ["Settings", "finetune"]


def finetune(base: Path, data: Path | str, out: Path, settings: Settings, *, eval_data: Path | str | None = None,
             resume: bool = False, force: bool = False, report_to: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """Train and write the run folder ``out``; return its manifest.

    data, eval_data: what `edgeqaf.data.read_rows` reads. report_to: trackers that transformers knows by name.
    Raises VerificationFailed when the run is inert or its loss no number, Interrupted when stopped by a signal
    (its checkpoint is then on disk), Refused for a resume with other settings, base or data. What one of several
    ranks raises, all raise.
    """
    with ranks.joined():
        if not ranks.first():
            be_quiet(True)
        with ranks.agreed():
            take_over()
            require_trackers(report_to)
            run = prepare(base, data, out, settings, eval_data)
        require_alike(run.record)
        if ranks.alone(lambda: _open_run(out, run.record, resume=resume, force=force)):
            say(f"{out} is already complete")
            return ranks.alone(lambda: checkpoint.read_manifest(out))
        last = ranks.alone(lambda: next(reversed(checkpoints(out / CHECKPOINTS)), None))
        if last is None:
            with ranks.agreed():
                run.method.begin(run.model, run.options)
        # Only now: what adapters draw and round at the start, they do on the CPU, alike everywhere.
        run.model.to(settings.device)
        _announce(run)
        with progress(f"finetune {settings.method}", settings.steps) as advance:
            trainer = _trainer(run, advance, report_to)
            _train(trainer, last)
        if any(isinstance(c, Interrupt) and c.stopped for c in trainer.callback_handler.callbacks):
            raise ranks.echoed(
                Interrupted(
                    f"stopped at step {trainer.state.global_step} of {settings.steps}",
                    "run the same command with --resume",
                ),
                ranks.first(),
            )
        without = _measure_the_end(trainer)
        with assembled(run.model):
            require_same_everywhere(run.model)
            return ranks.alone(lambda: _finish(run, without))


def _announce(run: Prepared) -> None:
    settings, counts = run.settings, run.rows.counts
    say(f"{len(run.rows.train)} rows to train on, {len(run.rows.held_out)} held out")
    for remark in remarks(counts, settings.max_length, dropped=settings.drop_duplicates):
        say(remark)
    if ranks.count() > 1:
        rows, micro = ranks.shared(settings.batch, settings.accumulate)
        kept = "float parameters sharded" if wanted() else "each with the whole model"
        say(
            f"{ranks.count()} ranks, {kept}: {settings.batch * settings.accumulate} rows a step, "
            f"{micro} x {rows} on each"
        )


def _open_run(out: Path, record: dict[str, Any], *, resume: bool, force: bool) -> bool:
    """Make the run folder, or check that a resumed one is the same run; whether it is complete already."""
    if resume and (out / SETTINGS).is_file():
        before = read_json(out / SETTINGS)
        changed = [key for key in record if key != "base" and before.get(key) != record[key]]
        if changed:
            key = changed[0]
            raise Refused(
                f"{out} was started with {key} = {before.get(key)!r}, not {record[key]!r}",
                "resume with the settings, base, data and ranks it was started with, or choose another output",
            )
        for left in [*out.glob(".*.part"), *(out / CHECKPOINTS).glob(".*.part")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # of a process that was killed
        return (out / MANIFEST).is_file()
    require_new(out, force)
    with staged(out, force=force) as part:
        (part / CHECKPOINTS).mkdir(parents=True)
        write_json(part / SETTINGS, record)
    return False


def _trainer(run: Prepared, advance: Any, report_to: Sequence[str]) -> GridTrainer:
    settings, model = run.settings, run.model
    train, held_out, collator = batched(run.rows, settings, run.pad)
    rows, micro = ranks.shared(settings.batch, settings.accumulate)
    arguments = TrainingArguments(
        output_dir=str(run.out / CHECKPOINTS), max_steps=settings.steps, per_device_train_batch_size=rows,
        gradient_accumulation_steps=micro, max_grad_norm=0.0,
        seed=settings.seed, data_seed=settings.seed, logging_steps=1, logging_nan_inf_filter=False,
        eval_strategy="steps" if held_out else "no", eval_steps=settings.eval_every, prediction_loss_only=True,
        save_strategy="steps", save_steps=settings.save_every, disable_tqdm=True, report_to=[],
        use_cpu=settings.device == "cpu", bf16=settings.precision == "bf16",
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are several ranks, never copies of one process's model
    arguments.report_to = list(report_to)  # transformers adds to it where a cluster's environment asks for it

    def measure(done: float) -> dict[str, float]:
        with assembled(model):
            moved = total(layer_movements(model))
        if run.method.lossless and (hint := early_hint(moved, done)):
            say(hint)
        return {"moved": moved.share} if moved.weights else {}

    if settings.checkpointing:
        enable_checkpointing(model)
    if wanted():
        shard(model)
    optimizer, schedule = run.method.optimizer(model, run.options, Course(settings.steps, micro))
    optimizer.register_step_post_hook(lambda *_: _changed(model))
    trainer = GridTrainer(
        run.out / CHECKPOINTS, Order(len(train), settings.steps, rows, micro, settings.seed),
        [held_out[i : i + settings.batch] for i in range(0, len(held_out), settings.batch)], run.blame,
        model=model, args=arguments, train_dataset=train, eval_dataset=held_out or None, data_collator=collator,
        callbacks=[Progress(run.out / LOG, advance, measure), Interrupt()], optimizers=(optimizer, schedule),
    )  # fmt: skip
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    write_into(run.out, trainer.callback_handler.callbacks)
    return trainer


def enable_checkpointing(model: Any) -> None:
    """Have each decoder layer's activations computed again in backward instead of kept; the bits stay the same."""
    renamed = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.22 and later
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.config.use_cache = False


def _changed(model: nn.Module) -> None:
    """Have every layer folded anew: FSDP changes parameters where neither address nor version shows it."""
    for layer in qlinears(model).values():
        layer.changed()


def _write(path: Path, value: dict[str, Any]) -> None:
    with staged(path, force=True) as part:
        write_json(part, value)


def _train(trainer: GridTrainer, last: Path | None) -> None:
    """Train from the checkpoint ``last`` (or from the start) to the end."""
    if last is not None and TrainerState.load_from_json(str(last / STATE)).global_step >= trainer.args.max_steps:
        load_parameters(trainer.model, last / ADAPTER)  # transformers would take one step too many
        trainer.state = TrainerState.load_from_json(str(last / STATE))
        return
    trainer.train(resume_from_checkpoint=None if last is None else str(last))


def _measure_the_end(trainer: GridTrainer) -> dict[str, float]:
    """Take the held-out loss of the last step, unless it was due and taken; return it without each written slot."""
    if not trainer.held_out:
        return {}
    logged = trainer.state.log_history
    if not any("eval_loss" in e and e["step"] == trainer.args.max_steps for e in logged):
        trainer.evaluate()
    return attribute(trainer.model, trainer.held_out_loss)


def _final_losses(run: Prepared) -> tuple[float, float | None]:
    """Mean training loss of the last tenth of the run, and the held-out loss at its end."""
    entries = [entry for entry, _ in read_log(run.out / LOG)]
    losses = [entry["loss"] for entry in entries if "loss" in entry][-max(1, run.settings.steps // 10) :]
    held_out = [entry["eval_loss"] for entry in entries if "eval_loss" in entry][-1:]
    return sum(losses) / len(losses), held_out[0] if held_out else None


def _finish(run: Prepared, without: dict[str, float]) -> dict[str, Any]:
    """Write adapter and manifest; then judge the run."""
    from safetensors.torch import save_file

    out, model, method, settings = run.out, run.model, run.method, run.settings
    movements = layer_movements(model)
    loss, held_out = _final_losses(run)
    about = method.describe(model)
    layers = {name: asdict(m) | about.get(name, {}) for name, m in movements.items()}
    manifest = {
        "format": FORMAT, "kind": "run", "parent": run.record["base_root"], "method": settings.method,
        "options": run.options.model_dump(), "seed": settings.seed,
        "lossless": method.lossless, "folded": folded_digests(model), "layers": layers,
        "training_loss": loss, "held_out_loss": held_out, "held_out_loss_without": without, "steps": settings.steps,
        "rows": asdict(run.rows.counts) | {"held_out": len(run.rows.held_out)},
        "tool": {"edgeqaf": __version__, "torch": torch.__version__},
    }  # fmt: skip
    with staged(out / ADAPTER, force=True) as part:
        save_file(parameters(model, method.stored_name), part, metadata={"format": "pt"})
    base = os.path.normpath(out / run.record["base"])
    _write(out / CONFIG, {**method.adapter_config(model), "base_model_name_or_path": base})
    _write(out / MANIFEST, manifest)
    if method.lossless:
        for hint in hints(total(movements)):
            say(hint)
        require_moved(total(movements), settings.method)
    return manifest
