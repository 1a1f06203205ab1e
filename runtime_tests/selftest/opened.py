"""An artifact as bytes: where its matrices lie, found by the formats' own libraries and not by our exporters."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeqaf.protocols import Artifact
from runtime_tests.selftest.registry import Random

PROGRAM = "model.onnx"


@dataclass(frozen=True)
class Opened:
    """A copy of an artifact, to be spoiled.

    path: of the artifact; data, head: files that hold tensors, and what is said before them (GGUF: one file);
    head_size: bytes of the latter. matrices: name in the file -> offset and size, in bytes, of a matrix's integers.
    """

    path: Path
    data: Path
    head: Path
    head_size: int
    matrices: Mapping[str, tuple[int, int]]

    def any_matrix(self, rng: Random) -> str:
        return list(self.matrices)[rng.integers(len(self.matrices))]

    def read(self, name: str) -> bytes:
        offset, size = self.matrices[name]
        with open(self.data, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, name: str, raw: bytes) -> None:
        offset, size = self.matrices[name]
        assert len(raw) == size
        with open(self.data, "r+b") as file:
            file.seek(offset)
            file.write(raw)


def copied(artifact: Artifact, place: Path) -> Artifact:
    """The same artifact at another place, its tensors still those of the original."""
    place.mkdir()
    target = place / artifact.path.name
    if artifact.path.is_dir():
        shutil.copytree(artifact.path, target)
    else:
        for part in artifact.path.parent.glob(f"{artifact.path.name[:5]}*.gguf"):
            shutil.copyfile(part, place / part.name)
    return replace(artifact, path=target)


def opened(artifact: Artifact) -> Opened | None:
    """The matrices of an artifact that are on a grid, by their names in it; None for a format not known here."""
    readers = {"gguf": _gguf, "onnx": _folder}
    if artifact.format not in readers:
        return None
    return readers[artifact.format](artifact.path, {stored.name for _, stored, _ in artifact.quantized()})


def _gguf(path: Path, quantized: set[str]) -> Opened:
    from gguf import GGUFReader

    tensors = {t.name: (int(t.data_offset), int(t.n_bytes)) for t in GGUFReader(path).tensors}
    matrices = {name: place for name, place in tensors.items() if name in quantized}
    return Opened(path, path, path, min(offset for offset, _ in tensors.values()), matrices)


def _folder(path: Path, quantized: set[str]) -> Opened:
    """Of the exact profile, whose program reads digits and no codes, the digits."""
    import onnx

    model = onnx.load(str(path / PROGRAM), load_external_data=False)
    places = {
        t.name: {entry.key: entry.value for entry in t.external_data}
        for t in model.graph.initializer
        if t.external_data and t.name.endswith((".codes", ".high"))
    }
    data = path / next(iter(places.values()))["location"]
    matrices = {name: (int(place["offset"]), int(place["length"])) for name, place in places.items()}
    head = path / PROGRAM
    return Opened(path, data, head, head.stat().st_size, matrices)
