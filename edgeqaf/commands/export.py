"""export: write the integers into the files that devices load."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import DryRun, Force, Json, Output, claim


def command(
    model: Annotated[Path, typer.Argument(help="Model folder made by merge (or quantize).")],
    output: Output,
    format: Annotated[str, typer.Option("--format", help="Formats, comma-separated: gguf, onnx.")] = "gguf,onnx",
    tokenizer_from: Annotated[
        Path | None,
        typer.Option(help="GGUF file of the same model to take the tokenizer from, where the folder's is unknown."),
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Export GGUF and ONNX carrying exactly the model's integers, each read back before it is kept."""
    from dataclasses import replace

    from edgeqaf import checkpoint, dist, plugins
    from edgeqaf.console import emit, say, table
    from edgeqaf.errors import UsageError
    from edgeqaf.serving import serving

    folder = replace(checkpoint.load(model), tokenizer_from=tokenizer_from)
    formats = list(dict.fromkeys(plugins.resolve("exporters", name.strip()) for name in format.split(",")))
    if tokenizer_from and "gguf" not in formats:
        raise UsageError(f"--tokenizer-from is for GGUF, and --format is {format}", "drop one of the two")
    sizes = dist.plan(folder, formats)
    if dry_run:
        grids = dist.grids_of(folder)
        rows = []
        for name, size in sizes.items():
            carriers = [f"{grid.name} in {plugins.find('exporters', name).stored_as(grid)}" for grid in grids]
            rows.append((name, f"{size / 1e6:.1f}", ", ".join(carriers)))
        table("Plan", ("format", "MB", "stored as"), rows)
        if json:
            emit({"bytes": sizes})
        return
    claim(output, "dist", force)
    checkpoint.verify(folder)
    receipt = dist.export(folder, formats, output, force=force)
    for name, file in receipt["artifacts"].items():
        size = sum(f["bytes"] for path, f in receipt["files"].items() if path == file or path.startswith(f"{file}/"))
        say(f"{output / file}: {size / 1e6:.2f} MB, reads back as root {receipt['root'][:12]} ({name})")
    kept = dist.tensors_kept_float(folder)
    say(f"matrices kept in float32: {', '.join(kept) or 'none'}")
    for doubt in serving(folder.folder).doubts:
        say(f"note: {doubt}")
    say(f"next: edgeqaf verify {output}")
    if json:
        emit(
            {
                "output": str(output),
                "root": receipt["root"],
                "artifacts": receipt["artifacts"],
                "files": receipt["files"],
            }
        )
