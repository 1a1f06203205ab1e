"""diff: which integers differ between two models."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import Json


def command(
    first: Annotated[Path, typer.Argument(help="Model folder, e.g. merged.")],
    second: Annotated[Path, typer.Argument(help="Model folder to compare with, e.g. base.")],
    json: Json = False,
) -> None:
    """Count per tensor the codes and parameters that differ; exit 0 either way."""
    from edgeqaf import checkpoint
    from edgeqaf.console import emit, say, table
    from edgeqaf.diff import difference

    a, b = checkpoint.load(first), checkpoint.load(second)
    changes = [c for name in sorted(a.tensors.keys() | b.tensors.keys()) if (c := difference(name, a, b))]
    rows = [(c.name, c.what, f"{c.codes:,}", f"{c.codes / c.weights:.2%}", f"{c.parameters:,}") for c in changes]
    if rows:
        table("", ("tensor", "difference", "codes", "share", "parameters"), rows)
    codes, weights = sum(c.codes for c in changes), sum(q.size for _, q in a.quantized())
    say(f"{len(changes)} of {len(a.tensors)} tensors differ")
    say(f"{codes:,} of {weights:,} codes ({codes / max(weights, 1):.2%})")
    if json:
        emit({"roots": [a.root, b.root], "codes": codes, "weights": weights, "tensors": [vars(c) for c in changes]})
