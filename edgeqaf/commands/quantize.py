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
    ends: Annotated[
        str | None,
        typer.Option(
            help="Grid of the embedding, and of a head that is not tied to it: q8_0, q4_0. By rtn where gptq does the "
            "rest; not for llama.cpp, which has its own types. Default: they stay float."
        ),
    ] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(
            help="How codes and scales are chosen: rtn (nearest, scales searched), absmax (nearest, fast), gptq (by a "
            "text, --calib), llama.cpp (its own, --type). Default: rtn."
        ),
    ] = None,
    calib: Annotated[
        str | None, typer.Option(help="Text like those the model will read, for gptq; whatever finetune takes.")
    ] = None,
    calib_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of it that are used, from its beginning; default: 32768.")
    ] = None,
    damping: Annotated[
        float | None, typer.Option(help="Added to Hessians for gptq, as a share of their diagonal; default: 0.01.")
    ] = None,
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
    from edgeqaf import imported, plugins
    from edgeqaf.console import emit, say, table
    from edgeqaf.quantizer import Quantizer, require_known

    given = {
        "grid": grid, "ends": ends, "calib": calib, "calib_tokens": calib_tokens, "damping": damping, "type": kind,
        "imatrix": imatrix, "pure": pure or None, "llama_lib": llama_lib,
    }  # fmt: skip
    options = {option: value for option, value in given.items() if value is not None}
    if imported.is_import(model):
        _require_none(model, options | ({"quantizer": quantizer} if quantizer else {}))
        _import(model, output, tokenizer, force=force, dry_run=dry_run, json=json)
        return
    name = plugins.resolve("quantizers", quantizer or ("rtn" if kind is None else "llama.cpp"))
    require_known(name, options)
    chosen: Quantizer = plugins.find("quantizers", name)
    if dry_run:
        planned = chosen.plan(model, options)
        table("Plan", ("tensor", "shape", "stored as"), planned.rows())
        say(f"{planned.bytes / 1e6:.1f} MB to write")
        if json:
            emit({"bytes": planned.bytes, "tensors": {name: kind for name, _, kind in planned.rows()}})
        return
    claim(output, "base", force)
    _report(chosen.base(model, output, options, force=force), output, json)


def _require_none(model: Path, options: Mapping[str, object]) -> None:
    from edgeqaf.errors import UsageError
    from edgeqaf.quantizer import flag

    for option, value in options.items():
        raise UsageError(f"{flag(option)} {value} is for float models", f"leave it out: {model} keeps the grids it has")


def _import(model: Path, output: Path, tokenizer: Path | None, *, force: bool, dry_run: bool, json: bool) -> None:
    from edgeqaf import imported
    from edgeqaf.console import emit, say, table
    from edgeqaf.weightsfile import stored_bytes

    if dry_run:
        planned = imported.plan(model, tokenizer)
        size = stored_bytes(planned)
        table(
            "Plan", ("tensor", "shape", "stored as"), ((n, " x ".join(map(str, s)), g) for n, (g, s) in planned.items())
        )
        say(f"{size / 1e6:.1f} MB to write")
        if json:
            emit({"bytes": size, "tensors": {name: grid for name, (grid, _) in planned.items()}})
        return
    claim(output, "base", force)
    _report(imported.import_base(model, output, tokenizer, force=force), output, json)


def _report(base: "QModel", output: Path, json: bool) -> None:
    """Say what a new base holds."""
    from collections import Counter

    from edgeqaf.console import emit, say
    from edgeqaf.digest import FLOAT32
    from edgeqaf.quantizer import misfits
    from edgeqaf.source import ENDS

    outline, weights = base.outline(), Counter[str]()
    for found, shape in outline.values():
        weights[found] += prod(shape)
    report: dict[str, object] = {"output": str(output), "root": base.root}
    grid = base.manifest["options"].get("grid")
    if grid is None:  # imported, with whatever grids it had
        shares = ", ".join(f"{count:,} on {name}" for name, count in weights.most_common())
        say(f"{output}: {sum(weights.values()):,} weights ({shares}), root {base.root[:12]}")
        report |= {"weights": dict(weights)}
    else:
        kept = misfits(base)
        for its in sorted(set(kept.values())):
            names = ", ".join(name for name in kept if kept[name] == its)
            say(f"kept in float, as their rows do not fit {its}'s block: {names}")
        shares = ", ".join(f"{count:,} weights on {name}" for name, count in weights.most_common() if name != FLOAT32)
        say(f"{output}: {shares}, root {base.root[:12]}")
        report |= {"grid": grid, "weights": base.weights(), "misfits": list(kept)}
        report |= {"ends": {n: outline[n][0] for n in ENDS if n in outline and outline[n][0] != FLOAT32}}
    say(f"next: edgeqaf finetune {output} --data train.jsonl -o run")
    if json:
        emit(report)
