"""deploy: put an artifact on a device and prove that it arrived."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqaf.options import Force, Json, claim


def command(
    dist: Annotated[Path, typer.Argument(help="Dist folder made by export.")],
    to: Annotated[Path, typer.Option(help="Folder on the device: a mounted card, phone or share.")],
    format: Annotated[str, typer.Option("--format", help="Which artifact.")] = "gguf",
    force: Force = False,
    json: Json = False,
) -> None:
    """Copy one artifact with its receipt, then hash what arrived against the receipt."""
    from edgeqaf.console import emit, say
    from edgeqaf.dist import deploy

    if (to / "edgeqaf.json").exists():
        claim(to, "dist", force=True)  # the receipt would replace the manifest of a model
    copied = deploy(dist, format, to, force=force)
    say(f"{to}: {len(copied)} files, every SHA-256 equal to the receipt's")
    if json:
        emit({"to": str(to), "files": copied})
