"""export: write the integers into the files that devices load."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeqaf.exportoptions import Activations, Form, Profile
from edgeqaf.options import DryRun, Force, Json, Output, claim

if TYPE_CHECKING:  # the command line answers before numpy is loaded
    from edgeqaf.checkpoint import QModel


# Parameters of the command that bear on one format alone.
BELONGS = {"tokenizer_from": "gguf", "split_max_size": "gguf"} | dict.fromkeys(
    ("profile", "accuracy_level", "form", "activations"), "onnx"
)
SPELLED = {"gguf": "GGUF", "onnx": "ONNX"}


def command(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Model folder made by merge (or quantize).")],
    output: Output,
    format: Annotated[str, typer.Option("--format", help="Formats, comma-separated: gguf, onnx.")] = "gguf,onnx",
    tokenizer_from: Annotated[
        Path | None,
        typer.Option(help="GGUF file of the same model to take the tokenizer from, where the folder's is unknown."),
    ] = None,
    split_max_size: Annotated[
        str | None,
        typer.Option(help="Split GGUF over files of this size at most, 500M or 2G, as llama.cpp's gguf-split does."),
    ] = None,
    profile: Annotated[
        Profile,
        typer.Option(help="ONNX: transformers' program, fused by runtimes (everyday); equal bits everywhere (exact)."),
    ] = "everyday",
    accuracy_level: Annotated[
        int,
        typer.Option(min=0, max=4, help="ONNX: of ONNX Runtime's low-bit kernels; at 4 they round activations."),
    ] = 1,
    form: Annotated[
        Form, typer.Option(help="ONNX: quantized linears in standard operators (qdq), or in ONNX Runtime's own.")
    ] = "qdq",
    activations: Annotated[
        Activations | None,
        typer.Option(
            help="ONNX: what the program itself rounds the inputs of linears to: float (not at all) or int8; with "
            "--profile exact int16 or int8. The default is the first."
        ),
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Export GGUF and ONNX carrying exactly the model's integers, each read back before it is kept."""
    from dataclasses import replace

    from edgeqaf import checkpoint, dist, plugins
    from edgeqaf.console import emit, say
    from edgeqaf.exportoptions import ACTIVATIONS, ExportOptions, OnnxOptions
    from edgeqaf.serving import serving

    formats = list(dict.fromkeys(plugins.resolve("exporters", name.strip()) for name in format.split(",")))
    _require_formats(context, formats, format)
    limit = None if split_max_size is None else _bytes(split_max_size)
    rounded = activations or ACTIVATIONS[profile][0]
    asked = ExportOptions(tokenizer_from, limit, OnnxOptions(profile, accuracy_level, form, rounded))
    folder = replace(checkpoint.load(model), asked=asked)
    sizes = dist.plan(folder, formats)
    if dry_run:
        _show_plan(folder, sizes, json)
        return
    claim(output, "dist", force)
    checkpoint.verify(folder)
    receipt = dist.export(folder, formats, output, force=force)
    _say_written(output, receipt)
    kept = dist.tensors_kept_float(folder)
    say(f"matrices kept in float32: {', '.join(kept) or 'none'}")
    for doubt in serving(folder.folder).doubts:
        say(f"note: {doubt}")
    say(f"next: edgeqaf verify {output}")
    if json:
        emit({"output": str(output)} | {key: receipt[key] for key in ("root", "artifacts", "files")})


def _require_formats(context: typer.Context, formats: Sequence[str], format: str) -> None:
    """UsageError for a flag of a format that is not asked for."""
    from edgeqaf.errors import UsageError

    for name, belongs in BELONGS.items():
        source = context.get_parameter_source(name)
        if belongs not in formats and source is not None and source.name != "DEFAULT":
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is for {SPELLED[belongs]}, and --format is {format}", "drop one of the two")


def _show_plan(model: "QModel", sizes: Mapping[str, int], json: bool) -> None:
    """sizes: of each format's artifact, in bytes."""
    from edgeqaf import dist, plugins
    from edgeqaf.console import emit, say, table

    grids = dist.grids_of(model)
    rows = []
    for name, size in sizes.items():
        carriers = [f"{grid.name} in {plugins.find('exporters', name).stored_as(grid)}" for grid in grids]
        rows.append((name, f"{size / 1e6:.1f}", ", ".join(carriers)))
    table("Plan", ("format", "MB", "stored as"), rows)
    parts = {"gguf": plugins.find("exporters", "gguf").sizes(model)} if "gguf" in sizes else {}
    for name, each in parts.items():
        if len(each) > 1:
            say(f"{name}: {len(each)} files, the largest of {max(each) / 1e6:.1f} MB")
    if json:
        emit({"bytes": dict(sizes), "parts": parts})


def _say_written(output: Path, receipt: Mapping[str, Any]) -> None:
    from edgeqaf.card import ollama_takes
    from edgeqaf.console import say
    from edgeqaf.receipt import files_of
    from edgeqaf.splitnames import names_from

    for name, file in receipt["artifacts"].items():
        size, count = sum(receipt["files"][path]["bytes"] for path in files_of(receipt, file)), len(names_from(file))
        over = f" in {count} files" if count > 1 else ""
        say(f"{output / file}: {size / 1e6:.2f} MB{over}, reads back as root {receipt['root'][:12]} ({name})")
        if name == "gguf" and not ollama_takes(file):
            say("no Modelfile: Ollama takes no split GGUF")


def _bytes(size: str) -> int:
    """What --split-max-size says; M and G are powers of 1000, as for gguf-split."""
    from edgeqaf.errors import UsageError

    number, unit = size[:-1], {"M": 10**6, "G": 10**9}.get(size[-1:])
    if unit is None or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise UsageError(f"--split-max-size {size!r} is no size", "give a whole number and M or G: 500M, 2G")
    return int(number) * unit
