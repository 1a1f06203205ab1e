"""quantize: choose codes and scales for a float model."""

from math import prod
from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import DryRun, Force, Json, Output, claim


def command(
    model: Annotated[
        Path, typer.Argument(help="Float model (a folder in the Hugging Face layout), or a GGUF file to import.")
    ],
    output: Output,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Grid of the linear weights: q4_0, q4_1, q8_0, uint4; for study q3_0, q2_0, q3_1, q2_1, uint3, uint2. "
            "Default: q4_0; a GGUF file keeps the grids it has."
        ),
    ] = None,
    quantizer: Annotated[str, typer.Option(help="How codes and scales are chosen.")] = "rtn",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder to take the tokenizer of a GGUF file from, where it is not known here.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Quantize a float model onto a grid: the base that an adapter is trained on."""
    from edgeqaf import quantize
    from edgeqaf.console import emit, say, table

    if model.suffix == ".gguf":
        _import(model, output, grid, tokenizer, force=force, dry_run=dry_run, json=json)
        return
    grid = grid or "q4_0"
    planned = quantize.plan(model, grid)
    if dry_run:
        table("Plan", ("tensor", "shape", "stored as"), planned.rows())
        say(f"{planned.bytes / 1e6:.1f} MB to write")
        if json:
            emit({"bytes": planned.bytes, "tensors": {name: kind for name, _, kind in planned.rows()}})
        return
    claim(output, "base", force)
    base = quantize.quantize(model, output, grid, quantizer, force=force)
    if planned.misfits:
        say(f"kept in float, as their rows do not fit {grid}'s block: {', '.join(planned.misfits)}")
    weights = sum(q.size for _, q in base.quantized())
    say(f"{output}: {weights:,} weights on {grid}, root {base.root[:12]}")
    say(f"next: edgeqaf finetune {output} --data train.jsonl -o run")
    if json:
        emit({"output": str(output), "root": base.root, "grid": grid, "weights": weights, "misfits": planned.misfits})


def _import(
    file: Path, output: Path, grid: str | None, tokenizer: Path | None, *, force: bool, dry_run: bool, json: bool
) -> None:
    from collections import Counter

    from edgeqaf import imported
    from edgeqaf.console import emit, say, table
    from edgeqaf.errors import UsageError

    if grid is not None:
        raise UsageError(f"--grid {grid} is for float models", "leave it out: a GGUF file keeps the grids it has")
    if dry_run:
        planned = imported.plan(file, tokenizer)
        table(
            "Plan", ("tensor", "shape", "stored as"), ((n, " x ".join(map(str, s)), g) for n, (g, s) in planned.items())
        )
        if json:
            emit({"tensors": {name: grid for name, (grid, _) in planned.items()}})
        return
    claim(output, "base", force)
    base = imported.import_base(file, output, tokenizer, force=force)
    weights: Counter[str] = Counter()
    for found, shape in base.outline().values():
        weights[found] += prod(shape)
    shares = ", ".join(f"{count:,} on {name}" for name, count in weights.most_common())
    say(f"{output}: {sum(weights.values()):,} weights ({shares}), root {base.root[:12]}")
    say(f"next: edgeqaf finetune {output} --data train.jsonl -o run")
    if json:
        emit({"output": str(output), "root": base.root, "weights": dict(weights)})
