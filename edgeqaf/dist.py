"""The dist folder: artifacts for devices, and the receipt that ties them to the model's integers.

model.gguf, onnx/     the artifacts, one per exported format; a GGUF file may be split over several
reference/            config and tokenizer, what PyTorch needs beside the integers
edgeqaf.json          receipt: root, digests per tensor, SHA-256 of every file, the logit witness
README.md             model card: what was tuned, how to run it
Modelfile             for Ollama, beside a GGUF file that is not split
verify.json           what `edgeqaf verify` found last
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgeqaf import plugins
from edgeqaf.card import MODELFILE, model_card, ollama_takes
from edgeqaf.checkpoint import FORMAT, MANIFEST, QModel
from edgeqaf.companions import copy_companions
from edgeqaf.digest import FLOAT32, file_sha256, merkle_root
from edgeqaf.errors import Refused, VerificationFailed
from edgeqaf.grid import Grid
from edgeqaf.jsonfile import write_json
from edgeqaf.protocols import Artifact, Exporter
from edgeqaf.receipt import files_of, read_receipt
from edgeqaf.serving import serving
from edgeqaf.splitnames import names_from
from edgeqaf.staging import require_space, staged
from edgeqaf.statements import versions

REFERENCE = "reference"


@dataclass(frozen=True)
class Dist:
    """An opened dist folder: its receipt and its artifacts, each read back from disk."""

    folder: Path
    receipt: Mapping[str, Any]
    artifacts: Sequence[Artifact]

    @property
    def digests(self) -> dict[str, str]:
        return {name: entry["digest"] for name, entry in self.receipt["tensors"].items()}


def carriers(model: QModel) -> list[str]:
    """The formats that can carry every grid of the model."""
    grids = grids_of(model)
    found = {name: plugins.find("exporters", name) for name in plugins.names("exporters")}
    return [name for name, exporter in found.items() if not any(exporter.refuses(grid) for grid in grids)]


def grids_of(model: QModel) -> list[Grid]:
    """The grids that its tensors are on, sorted by name."""
    return [plugins.find("grids", name) for name in sorted({grid for grid, _ in model.outline().values()} - {FLOAT32})]


def plan(model: QModel, formats: Sequence[str]) -> dict[str, int]:
    """Bytes that each format will take; raises Refused if one cannot carry the model exactly."""
    sizes = {}
    for name in formats:
        exporter: Exporter = plugins.find("exporters", name)
        for grid in grids_of(model):
            reason = exporter.refuses(grid)
            if reason:
                raise Refused(
                    f"{name} cannot carry grid {grid.name}: {reason}",
                    "export another format, or quantize to another grid",
                )
        sizes[name] = exporter.plan(model)
    return sizes


def export(model: QModel, formats: Sequence[str], out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the dist folder ``out`` and return its receipt.

    Every artifact is read back before anything is visible; VerificationFailed if its Merkle root is
    not the model's.
    """
    sizes = plan(model, formats)
    with staged(out, force=force, needed_bytes=sum(sizes.values())) as part:
        (part / REFERENCE).mkdir(parents=True)
        copy_companions(model.folder, part / REFERENCE)
        artifacts = {}
        for name in formats:
            exporter: Exporter = plugins.find("exporters", name)
            path = exporter.export(model, part / exporter.filename)
            _require_root(name, exporter, path, model.root)
            artifacts[name] = path.name
        found = serving(model.folder)
        if ollama_takes(artifacts.get("gguf")):
            (part / MODELFILE).write_text(found.modelfile(artifacts["gguf"]), "utf-8")
        receipt = _receipt(model, artifacts, part)
        (part / "README.md").write_text(model_card(receipt, model.config, found), "utf-8")
        write_json(part / MANIFEST, receipt)
    return receipt


def open_dist(folder: Path) -> Dist:
    """Read every artifact of a dist folder back; raises Refused for what is malformed."""
    receipt = read_receipt(folder)
    artifacts = []
    for name, filename in sorted(receipt["artifacts"].items()):
        exporter: Exporter = plugins.find("exporters", name)
        artifacts.append(Artifact(name, folder / filename, exporter.read_back(folder / filename), folder / REFERENCE))
    return Dist(folder, receipt, artifacts)


def deploy(folder: Path, format: str, to: Path, *, force: bool = False) -> list[str]:
    """Copy one artifact and the receipt into the folder ``to``; return the files copied.

    The artifact is staged, hashed where it arrived, and only then renamed into place, as a whole; of several files the
    first, which a runtime opens, comes last. Raises Refused when the dist folder lacks the format, VerificationFailed
    when a hash is not the receipt's.
    """
    receipt = read_receipt(folder)
    name = plugins.resolve("exporters", format)
    if name not in receipt["artifacts"]:
        raise Refused(
            f"{folder} has no {name} artifact; it has {', '.join(receipt['artifacts'])}",
            f"export it: edgeqaf export MODEL --format {name}",
        )
    files = files_of(receipt, receipt["artifacts"][name])
    for path in files:
        _require_hash(folder / path, path, receipt)
    require_space(to, sum(receipt["files"][path]["bytes"] for path in files))
    with ExitStack() as arriving:  # which leaves what it entered first last
        roots = names_from(receipt["artifacts"][name])
        parts = {root: arriving.enter_context(staged(to / root, force=force)) for root in roots}
        for path in files:
            root, *inside = PurePosixPath(path).parts
            arrived = parts[root].joinpath(*inside)
            arrived.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, arrived)
            _require_hash(arrived, path, receipt)
        if len(roots) > 1 and (to / roots[0]).is_file():
            (to / roots[0]).unlink()  # an earlier first file must not open new others, should this be cut short now
    with staged(to / MANIFEST, force=True) as part:
        shutil.copyfile(folder / MANIFEST, part)
    return files


def _require_hash(file: Path, path: str, receipt: Mapping[str, Any]) -> None:
    if file_sha256(file) != receipt["files"][path]["sha256"]:
        raise VerificationFailed(
            f"{path}: its SHA-256 is not the receipt's", "export again; the dist folder was changed"
        )


def _require_root(name: str, exporter: Exporter, path: Path, root: str) -> None:
    artifact = Artifact(name, path, exporter.read_back(path), path.parent / REFERENCE)
    found = merkle_root(artifact.digests(f"check {name}"))
    if found != root:
        raise VerificationFailed(
            f"{name}: the written file reads back as root {found[:12]}, the model is {root[:12]}",
            "this is a defect in the exporter; please report it",
        )


def _receipt(model: QModel, artifacts: Mapping[str, str], part: Path) -> dict[str, Any]:
    files = sorted(p for p in part.rglob("*") if p.is_file())
    kept = {key: model.manifest[key] for key in ("parent", "tensors", "witness", "layers") if key in model.manifest}
    return {
        "format": FORMAT, "kind": "dist", "root": model.root, **kept,
        "artifacts": dict(artifacts), "asked": model.asked.recorded(artifacts),
        "files": {str(p.relative_to(part)): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files},
        "tool": versions_of(artifacts),
    }  # fmt: skip


def versions_of(formats: Iterable[str]) -> dict[str, str]:
    """The versions on which what exporters state depends, by package."""
    found = [versions(plugins.find("exporters", name)) for name in formats]
    return {package: version for each in found for package, version in each.items()}


def tensors_kept_float(model: QModel) -> list[str]:
    """Names of matrices that stayed float32, which every report lists."""
    return [name for name, (grid, shape) in sorted(model.outline().items()) if grid == FLOAT32 and len(shape) > 1]
