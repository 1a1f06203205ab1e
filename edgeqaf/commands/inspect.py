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
    from edgeqaf.checkpoint import MANIFEST, read_manifest
    from edgeqaf.console import emit, say, table
    from edgeqaf.errors import Refused

    manifest = read_manifest(folder)
    about: dict[str, Any] = {
        key: manifest[key] for key in ("kind", "root", "parent", "method", "steps") if manifest.get(key)
    }
    tensors, layers, files = (manifest.get(key, {}) for key in ("tensors", "layers", "files"))
    try:
        shapes = [(name, " x ".join(map(str, e["shape"])), e["grid"], e["digest"][:12]) for name, e in tensors.items()]
        moved = [
            (n, f"{m['moved']:,}", f"{m['moved'] / m['weights']:.1%}", f"{m['saturated']:,}") for n, m in layers.items()
        ]
        sizes = [f"{path}: {file['bytes']:,} bytes, sha256 {file['sha256'][:16]}" for path, file in files.items()]
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise Refused(
            f"{folder / MANIFEST} is malformed: {type(error).__name__}: {error}",
            "the file is corrupt; make the folder again",
        ) from None
    for key, value in about.items():
        say(f"{key}: {value}")
    if shapes:
        table("", ("tensor", "shape", "grid", "digest"), shapes)
    if moved:
        table("Movement", ("tensor", "codes moved", "share", "saturated"), moved)
    for line in sizes:
        say(line)
    if json:
        emit({**about, "tensors": tensors, "layers": layers, "files": files})
