"""inspect: what a folder holds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqaf.options import Json


def command(
    folder: Annotated[Path, typer.Argument(help="Any folder that edgeqaf wrote.")],
    json: Json = False,
) -> None:
    """Show kind, lineage, grids and tensors of a folder."""
    from edgeqaf.checkpoint import read_manifest
    from edgeqaf.console import emit, say, table

    manifest = read_manifest(folder)
    about: dict[str, Any] = {
        key: manifest[key] for key in ("kind", "root", "parent", "method", "steps") if manifest.get(key)
    }
    for key, value in about.items():
        say(f"{key}: {value}")
    tensors = manifest.get("tensors", {})
    shapes = [(name, " x ".join(map(str, e["shape"])), e["grid"], e["digest"][:12]) for name, e in tensors.items()]
    if shapes:
        table("", ("tensor", "shape", "grid", "digest"), shapes)
    layers = manifest.get("layers", {})
    if layers:
        moved = [
            (n, f"{m['moved']:,}", f"{m['moved'] / m['weights']:.1%}", f"{m['saturated']:,}") for n, m in layers.items()
        ]
        table("Movement", ("tensor", "codes moved", "share", "saturated"), moved)
    for path, file in manifest.get("files", {}).items():
        say(f"{path}: {file['bytes']:,} bytes, sha256 {file['sha256'][:16]}")
    if json:
        emit({**about, "tensors": tensors, "layers": layers, "files": manifest.get("files", {})})
