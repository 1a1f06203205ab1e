"""The receipt of a dist folder, strictly: whoever opens, deploys or reports one may rely on what it says."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgeqaf import plugins
from edgeqaf.checkpoint import MANIFEST, read_manifest
from edgeqaf.digest import merkle_root
from edgeqaf.errors import Refused
from edgeqaf.protocols import Exporter
from edgeqaf.splitnames import belonging, names_from, numbers_in, split_names


def read_receipt(folder: Path) -> dict[str, Any]:
    """The ``edgeqaf.json`` of the dist folder ``folder``; raises Refused as `require_sound` does."""
    receipt = read_manifest(folder)
    if receipt.get("kind") != "dist":
        raise Refused(f"{folder} is a {receipt.get('kind')} folder, not a dist folder", "pass a folder made by export")
    require_sound(receipt, folder / MANIFEST)
    return receipt


def require_sound(receipt: Mapping[str, Any], path: Path) -> None:
    """Refuse a receipt, read from ``path``, that contradicts itself or leads out of its folder.

    Its root must be that of its tensors' digests, every file must lie inside the folder, and each
    artifact must be what its exporter writes and have files with digests.
    """
    try:
        fault = _fault(receipt)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"malformed: {type(error).__name__}: {error}"
    if fault:
        raise Refused(f"{path}: {fault}", "export the folder again")


def files_of(receipt: Mapping[str, Any], artifact: str) -> list[str]:
    """The paths, within the dist folder, of the artifact called ``artifact``: see `edgeqaf.splitnames.belonging`."""
    return belonging(receipt["files"], artifact)


def _fault(receipt: Mapping[str, Any]) -> str | None:
    root = merkle_root({name: entry["digest"] for name, entry in receipt["tensors"].items()})
    if root != receipt["root"]:
        return f"root {str(receipt['root'])[:12]} is not that of its tensors, {root[:12]}"
    for name, file in receipt["files"].items():
        if not name.isprintable() or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"file {name!r} is no path inside the folder"
        if not isinstance(file["bytes"], int) or not isinstance(file["sha256"], str):
            return f"file {name!r} has no size or digest"
    for name, artifact in receipt["artifacts"].items():
        missing = set(names_from(artifact)) - {path.split("/", 1)[0] for path in receipt["files"]}
        if missing:
            return f"artifact {min(missing)!r} has no file with a digest"
        if name not in plugins.names("exporters") or artifact != _written(plugins.find("exporters", name), artifact):
            return f"artifact {artifact!r} is not what an exporter {name!r} writes"
    return None if receipt["artifacts"] else "it names no artifact"


def _written(exporter: Exporter, artifact: str) -> str:
    """What an exporter calls an artifact over as many files as the name ``artifact`` says."""
    return split_names(exporter.filename, numbers_in(artifact)[2])[0]
