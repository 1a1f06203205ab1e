"""quantize: choose codes and scales for a float model."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeqaf.options import DryRun, Force, Json, LlamaLib, Output, claim

if TYPE_CHECKING:  # the command line answers before numpy is loaded
    from edgeqaf.checkpoint import QModel


def command(
    model: Annotated[
        Path,
        typer.Argument(
            help="Float model (a folder in the Hugging Face layout); or one to import: a GGUF file, a GPTQ, AWQ or "
            "compressed-tensors folder."
        ),
    ],
    output: Output,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Grid of the linear weights: q4_0, q4_1, q8_0, uint4; for study q3_0, q2_0, q3_1, q2_1, uint3, uint2. "
            "Default: q4_0; what is imported keeps its own."
        ),
    ] = None,
    quantizer: Annotated[
        str, typer.Option(help="How codes and scales are chosen: rtn, or llama.cpp (its own quantizer, with --type).")
    ] = "rtn",
    kind: Annotated[str | None, typer.Option("--type", help="File type for llama.cpp to make: Q4_K_M.")] = None,
    imatrix: Annotated[Path | None, typer.Option(help="Importance matrix for llama.cpp, by llama-imatrix.")] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One block type for all matrices, not llama.cpp's mix.")] = False,
    llama_lib: LlamaLib = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder to take the tokenizer of a GGUF file from, where it is not known here.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Quantize a float model onto a grid, or import a quantized one: the base that an adapter is trained on."""
    from edgeqaf import imported, plugins, quantize
    from edgeqaf.console import emit, say, table

    if imported.is_import(model):
        _require_none(model, {"--grid": grid, "--type": kind, "--imatrix": imatrix})
        _import(model, output, tokenizer, force=force, dry_run=dry_run, json=json)
        return
    if plugins.resolve("quantizers", quantizer) == "llama_cpp" or kind is not None:
        _by_llama_cpp(model, output, grid, kind, llama_lib, pure=pure, imatrix=imatrix, force=force, json=json)
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


def _require_none(model: Path, flags: Mapping[str, object]) -> None:
    from edgeqaf.errors import UsageError

    for flag, value in flags.items():
        if value is not None:
            raise UsageError(f"{flag} {value} is for float models", f"leave it out: {model} keeps the grids it has")


def _import(model: Path, output: Path, tokenizer: Path | None, *, force: bool, dry_run: bool, json: bool) -> None:
    from edgeqaf import imported
    from edgeqaf.console import emit, table

    if dry_run:
        planned = imported.plan(model, tokenizer)
        table(
            "Plan", ("tensor", "shape", "stored as"), ((n, " x ".join(map(str, s)), g) for n, (g, s) in planned.items())
        )
        if json:
            emit({"tensors": {name: grid for name, (grid, _) in planned.items()}})
        return
    claim(output, "base", force)
    _report(imported.import_base(model, output, tokenizer, force=force), output, json)


def _by_llama_cpp(
    folder: Path, output: Path, grid: str | None, kind: str | None, llama_lib: Path | None, *, pure: bool,
    imatrix: Path | None, force: bool, json: bool,
) -> None:  # fmt: skip
    from edgeqaf.errors import UsageError
    from edgeqaf.imported import quantize_by_llama_cpp
    from edgeqaf.protocols import RuntimeOptions

    if kind is None or grid is not None:
        raise UsageError(
            f"llama.cpp's quantizer takes --type, {'and no --grid' if grid else 'and none is given'}",
            "name one of its file types: --type Q4_K_M",
        )
    claim(output, "base", force)
    options = RuntimeOptions(llama_lib, threads=0)
    _report(quantize_by_llama_cpp(folder, output, kind, options, pure=pure, imatrix=imatrix, force=force), output, json)


def _report(base: "QModel", output: Path, json: bool) -> None:
    """Say what an imported base holds."""
    from collections import Counter

    from edgeqaf.console import emit, say

    weights: Counter[str] = Counter()
    for found, shape in base.outline().values():
        weights[found] += prod(shape)
    shares = ", ".join(f"{count:,} on {name}" for name, count in weights.most_common())
    say(f"{output}: {sum(weights.values()):,} weights ({shares}), root {base.root[:12]}")
    say(f"next: edgeqaf finetune {output} --data train.jsonl -o run")
    if json:
        emit({"output": str(output), "root": base.root, "weights": dict(weights)})
