"""diff: which integers differ between two models, and the patch that turns one into the other."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import Force, Json


def command(
    first: Annotated[Path, typer.Argument(help="Model folder or GGUF file, e.g. merged.")],
    second: Annotated[Path, typer.Argument(help="Model folder or GGUF file to compare with, e.g. base.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Also write the task patch that turns the second into the first."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Count per tensor the codes and parameters that differ; exit 0 either way."""
    from edgeqaf.console import emit, say, table
    from edgeqaf.diff import differences, opened

    a, b = opened(first), opened(second)
    made = None
    if output is None:
        changes = [change for _, change in differences(a, b) if change]
    else:
        from edgeqaf.patch.making import make
        from edgeqaf.staging import require_new

        require_new(output, force)
        made = make(b, a, output, force=force)
        changes = made.changes
    rows = [(c.name, c.what, f"{c.codes:,}", f"{c.codes / c.weights:.2%}", f"{c.parameters:,}") for c in changes]
    if rows:
        table("", ("tensor", "difference", "codes", "share", "parameters"), rows)
    codes, weights = sum(c.codes for c in changes), a.weights()
    say(f"{len(changes)} of {len(a.tensors)} tensors differ")
    say(f"{codes:,} of {weights:,} codes ({codes / max(weights, 1):.2%})")
    said = {"codes": codes, "weights": weights, "tensors": [vars(c) for c in changes]}
    roots = {"roots": [a.root, b.root]} if a.manifest and b.manifest else {}
    if made is not None:
        share = f"; the entropy of its differences is {made.entropy / 1e6:.3f} MB" if made.entropy else ""
        say(f"{output}: {made.size / 1e6:.3f} MB{share}")
        say(f"next: edgeqaf patch apply model.gguf {output}")
        roots = {"roots": [made.after, made.before]}
        said |= {"output": str(output), "bytes": made.size, "entropy": made.entropy}
    if json:
        emit(said | roots)
