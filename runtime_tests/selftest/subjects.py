"""What is damaged: small models on every grid in every program that carries it, or the artifacts of a dist folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.dist import open_dist
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.protocols import Artifact
from edgeqaf.statements import Logical, model_of
from runtime_tests.selftest import models
from runtime_tests.selftest.registry import Target

TENSORS = (Target.MATRIX, Target.PAIR)
BESIDE = (Target.FLOATS, Target.STATEMENT, Target.FILE)
PROGRAMS = {
    "onnx": {
        "": OnnxOptions(),
        "matmulnbits": OnnxOptions(form="matmulnbits"),
        "exact": OnnxOptions("exact", activations="int16"),
    },
}  # of formats that are exported in several ways: word in the subject's name -> options
REPEATED = ("matmulnbits",)  # programs that meet the kernels of another
ONCE = ("q4_0", "q4_1")  # grids that stand for all in those; the first for what does not depend on a grid as well


@dataclass(frozen=True)
class Subject:
    """One artifact to be damaged in every way that ``targets`` names.

    grids:  those that the layers of the model take turns on; empty for an artifact of a dist folder.
    folder: the dist folder; None for a model that is made on the fly.
    bare:   whether what takes bare integers, of whatever artifact, is asked too; it need not be twice.
    """

    name: str
    format: str
    targets: tuple[Target, ...]
    grids: tuple[str, ...] = ()
    options: OnnxOptions = field(default_factory=OnnxOptions)
    folder: Path | None = None
    bare: bool = True


@dataclass(frozen=True)
class Sound:
    """A subject before it is damaged: the model, its artifact, and whether all of it is small."""

    model: QModel
    artifact: Artifact
    small: bool


def made_on_the_fly() -> Iterator[Subject]:
    """Every registered grid in every program that carries it."""
    seen: set[str] = set()
    for format in plugins.names("exporters"):
        exporter = plugins.find("exporters", format)
        for word, options in PROGRAMS.get(format, {"": OnnxOptions()}).items():
            for grid in plugins.names("grids"):
                if exporter.refuses(plugins.find("grids", grid)) or (word in REPEATED and grid not in ONCE):
                    continue
                targets = TENSORS + (BESIDE if grid == ONCE[0] else ())
                name = " ".join(filter(None, (format, word, grid)))
                yield Subject(name, format, targets, (grid,), options, bare=grid not in seen)
                seen.add(grid)


def of_dist(folder: Path) -> Iterator[Subject]:
    """The artifacts of a dist folder, which must be sound so far as R0 tells."""
    dist = open_dist(folder)
    for artifact in dist.artifacts:
        if artifact.digests() != dist.digests:
            raise Refused(f"{folder}: {artifact.format} is not what the receipt says", "run edgeqaf verify first")
        options = OnnxOptions(**dist.receipt.get("asked", {}).get("onnx", {}))
        yield Subject(artifact.format, artifact.format, TENSORS + BESIDE, (), options, folder)


def prepare(subject: Subject, place: Path, seed: int) -> Sound:
    """The subject as it should be; what is made on the fly is made in the folder ``place``."""
    if subject.folder is not None:
        dist = open_dist(subject.folder)
        artifact = next(a for a in dist.artifacts if a.format == subject.format)
        model = model_of(artifact, dist.receipt.get("asked", {}))
        weights = sum(_size(shape) for _, shape in artifact.outline().values())
        return Sound(model, artifact, weights <= 2 * 10**7)
    model = models.model(place / "model", [plugins.find("grids", name) for name in subject.grids], seed)
    model = replace(model, asked=ExportOptions(onnx=subject.options))
    return Sound(model, exported(model, subject.format, place / "sound"), small=True)


def exported(model: QModel, format: str, place: Path) -> Artifact:
    """The artifact of a model, by the real exporter, read back; its reference are the model's own companions."""
    exporter = plugins.find("exporters", format)
    place.mkdir()
    path = exporter.export(model, place / exporter.filename)
    return Artifact(format, path, exporter.read_back(path), model.folder)


def sizes(model: QModel) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Logical name -> grid and shape."""
    return dict(model.tensors.outline()) if isinstance(model.tensors, Logical) else model.outline()


def _size(shape: Sequence[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
