"""finetune: train an adapter that lives on the grid."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgeqaf.options import Config, Device, DryRun, Force, Json, Output, claim, listed, place


def command(
    base: Annotated[Path, typer.Argument(help="Base folder made by quantize.")],
    data: Annotated[
        str, typer.Option(help="Training data: .jsonl, .json, .csv, .tsv, .parquet, .txt, or hf:org/name of the Hub.")
    ],
    output: Output,
    method: Annotated[str, typer.Option(help="Tuning method, or several: lowrank+scale.")] = "codes",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Rows per micro-batch, over all ranks.")] = 16,
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches per step; several ranks share them.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Learning rate, in the method's own unit.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of the method: --set move_rate=0.5")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="Data for the held-out loss; default: a share of --data.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of --data held out where --eval-data is not given.")
    ] = 0.05,
    columns: Annotated[
        str | None, typer.Option(help="Keys to take as PROMPT,COMPLETION; default: see the guide; CSV: the first two.")
    ] = None,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Leave out rows that repeat an earlier one.")
    ] = False,
    packing: Annotated[
        bool, typer.Option("--packing", help="Several rows in one sequence, without seeing each other.")
    ] = False,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens a row may have; longer ones are left out.")] = 256,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between held-out losses.")] = 100,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the adapter and of the order of rows.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for all.")] = 0,
    device: Device = "auto",
    precision: Annotated[
        Literal["float32", "bf16"], typer.Option(help="Of activations and matrix products; bf16 is faster on a GPU.")
    ] = "float32",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again in backward: less memory, more time.")
    ] = False,
    report_to: Annotated[
        str, typer.Option(help="Experiment trackers, comma-separated: tensorboard, wandb, mlflow ...")
    ] = "none",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    config: Config = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Tune a quantized base; the loss is that of the integers that will be stored."""
    from edgeqaf import ranks
    from edgeqaf.console import emit
    from edgeqaf.finetune import Settings, finetune
    from edgeqaf.method import method_of

    options = _options(set_ or [], lr, rank)
    settings = Settings(
        method=method, steps=steps, batch=batch, accumulate=accumulate, max_length=max_length, seed=seed,
        holdout=holdout, eval_every=eval_every, save_every=save_every, threads=threads, columns=listed(columns),
        packing=packing, drop_duplicates=drop_duplicates, device=place(device), precision=precision,
        checkpointing=checkpointing, options=options,
    )  # fmt: skip
    if dry_run:
        method_of(method, options)
        _plan(base, data, eval_data, settings, json)
        return
    trackers = [name for name in listed(report_to) if name != "none"]
    with ranks.joined():
        ranks.alone(lambda: claim(output, "run", force or resume))
        run = finetune(
            base, data, output, settings, eval_data=eval_data, resume=resume, force=force, report_to=trackers
        )  # fmt: skip
    _report(run, output)
    if json:
        keys = ("parent", "method", "training_loss", "held_out_loss", "rows")
        emit({"output": str(output), **{key: run[key] for key in keys}})


def _options(items: list[str], lr: float | None, rank: int | None) -> dict[str, Any]:
    """The method's options from ``--set KEY=VALUE`` items and the two flags that are short for one."""
    from edgeqaf.errors import UsageError

    options: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item!r} is not KEY=VALUE", "write for example --set move_rate=0.5")
        options[key] = value
    return options | {key: value for key, value in (("lr", lr), ("rank", rank)) if value is not None}


def _plan(base: Path, data: str, eval_data: str | None, settings: Any, json: bool) -> None:
    """Print what the run would do and take."""
    from edgeqaf.console import emit, say, table
    from edgeqaf.plan import plan

    planned = plan(base, data, settings, eval_data)
    for name, amount in planned.items():
        if isinstance(amount, int):
            say(f"{name.replace('_', ' ')}: {amount:,}")
    say(f"epochs: {planned['epochs']:.2f}")
    table("Memory, estimated", ("part", "MB"), [(n, f"{count / 1e6:.1f}") for n, count in planned["memory"].items()])
    if planned["seconds"] is None:
        say("time: not measured, as the estimate is beyond the memory that is free; lower --batch or --max-length")
    else:
        seconds = planned["seconds"]
        total = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
        say(f"time, estimated: {total} ({planned['seconds_per_step']:.2g} s a step, as a few real steps took here)")
    if json:
        emit(planned)


def _report(run: dict[str, Any], output: Path) -> None:
    from edgeqaf.console import say
    from edgeqaf.movement import Movement

    fields = Movement.__dataclass_fields__
    layers = [Movement(**{k: v for k, v in layer.items() if k in fields}) for layer in run["layers"].values()]
    moved = sum(layers, Movement())
    held_out = run["held_out_loss"]
    loss = f", held-out loss {held_out:.3f}" if held_out is not None else ""
    say(f"{output}: {run['steps']} steps of {run['method']}{loss}")
    counts = {"codes": (moved.moved, moved.weights), "zeros": (moved.zeros_moved, moved.zeros),
              "scales": (moved.scales_moved, moved.scales)}  # fmt: skip
    for name, (changed, of) in counts.items():
        if changed:
            say(f"{name} moved: {changed:,} of {of:,} ({changed / of:.1%})")
    for slot, without in run.get("held_out_loss_without", {}).items():
        say(f"held-out loss with the base's {slot} put back: {without:.3f}")
    if run["lossless"]:
        say(f"next: edgeqaf merge {output} -o merged")
    else:
        say(f"next: edgeqaf eval {output} --data test.jsonl --requantize")
