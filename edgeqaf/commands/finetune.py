"""finetune: train an adapter that lives on the grid."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqaf.options import Config, DryRun, Force, Json, Output, claim


def command(
    base: Annotated[Path, typer.Argument(help="Base folder made by quantize.")],
    data: Annotated[Path, typer.Option(help="Training data: .jsonl, .csv or .txt.")],
    output: Output,
    method: Annotated[str, typer.Option(help="Tuning method: lowrank, lota, lora.")] = "lowrank",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Rows per micro-batch.")] = 16,
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches per step.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Learning rate, in the method's own unit.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of the method: --set move_rate=0.5")
    ] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Held-out data; default: a share of --data.")] = None,
    holdout: Annotated[float, typer.Option(min=0, max=0.5, help="That share.")] = 0.05,
    columns: Annotated[str | None, typer.Option(help="CSV columns: PROMPT,COMPLETION; default the first two.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens a row may have; longer ones are left out.")] = 256,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between held-out losses.")] = 100,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the adapter and of the order of rows.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for all.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    config: Config = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Tune a quantized base; the loss is that of the integers that will be stored."""
    from edgeqaf.console import emit, say
    from edgeqaf.errors import UsageError

    options: dict[str, Any] = {}
    for item in set_ or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item!r} is not KEY=VALUE", "write for example --set move_rate=0.5")
        options[key] = value
    options |= {key: value for key, value in (("lr", lr), ("rank", rank)) if value is not None}
    from edgeqaf.finetune import Settings, finetune, plan
    from edgeqaf.method import method_of

    chosen = [c.strip() for c in columns.split(",")] if columns else []
    settings = Settings(
        method=method, steps=steps, batch=batch, accumulate=accumulate, max_length=max_length, seed=seed,
        holdout=holdout, eval_every=eval_every, save_every=save_every, threads=threads, columns=chosen, options=options,
    )  # fmt: skip
    if dry_run:
        method_of(method, options)
        planned = plan(base, data, settings)
        for name, amount in planned.items():
            say(f"{name.replace('_', ' ')}: {amount:,}")
        if json:
            emit(planned)
        return
    claim(output, "run", force or resume)
    run = finetune(base, data, output, settings, eval_data=eval_data, resume=resume, force=force)
    _report(run, output)
    if json:
        emit(
            {"output": str(output), **{key: run[key] for key in ("parent", "method", "training_loss", "held_out_loss")}}
        )


def _report(run: dict[str, Any], output: Path) -> None:
    from edgeqaf.console import say
    from edgeqaf.movement import Movement

    fields = Movement.__dataclass_fields__
    layers = [Movement(**{k: v for k, v in layer.items() if k in fields}) for layer in run["layers"].values()]
    moved = sum(layers, Movement())
    held_out = run["held_out_loss"]
    loss = f", held-out loss {held_out:.3f}" if held_out is not None else ""
    say(f"{output}: {run['steps']} steps of {run['method']}{loss}")
    if moved.weights:
        say(f"codes moved: {moved.moved:,} of {moved.weights:,} ({moved.share:.1%})")
    if run["lossless"]:
        say(f"next: edgeqaf merge {output} -o merged")
    else:
        say(f"next: edgeqaf eval {output} --data test.jsonl --requantize")
