"""The logical tensors of a GGUF file, ours or another maker's. Files are untrusted."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgeqaf import plugins
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.protocols import Stored
from edgeqaf.runs import Rows, cuts, threads
from exporters.gguf import families
from exporters.gguf.blocks import CARRIERS
from exporters.gguf.container import SEAL, Value, packed_value
from exporters.gguf.family import OUTPUT, Family
from exporters.gguf.floats import TYPES
from exporters.gguf.layouts import LAYOUTS
from exporters.gguf.numbers import AGAIN
from exporters.gguf.places import Place
from exporters.gguf.rows import InFile, Span
from exporters.gguf.split import Files, open_files

CARRIED = "edgeqaf.carried."  # metadata key: this and a grid's name; value: the tensors stored in another's type
SIZES = {kind: (1, dtype.itemsize) for kind, dtype in TYPES.items()}
SIZES |= {x.ggml_type: (x.weights, x.block.itemsize) for x in LAYOUTS.values()}


class StoredTensors(Mapping[str, Stored]):
    """The logical tensors of a file, or of the files of which it is the first, each read and checked when asked for.

    files, family: their headers, and the architecture they name. first: `edgeqaf.untrusted.Seen.first`. Raises Refused
    for files whose tensors are not those that the metadata implies, or that have types without a grid.
    """

    def __init__(self, path: Path, first: bytes = b"") -> None:
        self.files = open_known(path, first)
        self.files.check_seals()
        self.family = families.of_file(self.files.metadata)
        self.places = {place.logical: place for place in places_in(self.files, self.family)}
        named = _grids(self.files)
        found = {grid: plugins.find("grids", grid) for grid in set(named.values())}
        self._grids: dict[str, Grid] = {stored: found[grid] for stored, grid in named.items()}

    def check_all(self) -> "StoredTensors":
        """Read every tensor once; raises Refused for the first that is not on its grid."""

        def check(name: str) -> None:
            read = self.rows(name)
            for start, stop in cuts(self.places[name].shape):
                read(start, stop)

        with ThreadPoolExecutor(threads()) as pool:
            for _ in pool.map(check, self):
                pass
        return self

    def grid(self, name: str) -> Grid | None:
        """The grid of a logical tensor; None for one of floats."""
        return self._grids.get(self.places[name].stored)

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`, from the file's header alone."""
        grids = {name: self.grid(name) for name in self}
        return {name: (grid.name if grid else FLOAT32, self.places[name].shape) for name, grid in grids.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """`edgeqaf.protocols.Artifact.metadata`; the seal, which covers the rest, is left out."""
        return digests_of(self.files.metadata)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Stored:
        place = self.places[name]
        return Stored(self.located(name).whole(), place.stored, place.rows)

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        return self.located(name).read

    def locate(self, name: str, start: int, stop: int) -> Span:
        """Where logical rows [start, stop) of a tensor are; see `edgeqaf.patch.target.Editable`."""
        return self.located(name).span(start, stop)

    def located(self, name: str) -> InFile:
        """A logical tensor as it lies in its file."""
        place = self.places[name]
        return InFile(self.files.homes[place.stored], self.files.tensors[place.stored], place, self.grid(name))


def digests_of(metadata: Mapping[str, Value]) -> dict[str, str]:
    """SHA-256 of each value of a header's metadata, without the seal, which covers the rest."""
    return {k: hashlib.sha256(packed_value(value)).hexdigest() for k, value in metadata.items() if k != SEAL}


def open_known(path: Path, first: bytes = b"") -> Files:
    """The headers of a model of which every tensor has a type that is read here. first: as `StoredTensors` takes it."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    files = open_files(path, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}, first)
    for name, info in files.tensors.items():
        if info.type not in SIZES:
            known = ", ".join(GGMLQuantizationType(kind).name for kind in sorted(SIZES))
            raise Refused(
                f"{files.homes[name].path}: {name} is {GGMLQuantizationType(info.type).name}, "
                f"for which there is no grid; known: {known}",
                "take a file of the model in one of those types (Q4_K_M, say), or quantize it anew",
            )
    return files


def places_in(files: Files, family: Family) -> list[Place]:
    """Where each tensor of the model is, provided the files have exactly the tensors that the metadata implies."""
    path, tensors = files.path, files.tensors
    sizes = family.dimensions_in(files.metadata)
    if sizes.layers > len(tensors):
        raise Refused(f"{path}: {sizes.layers} layers in {len(tensors)} tensors", AGAIN)
    found = list(family.places(sizes, tied=OUTPUT not in tensors))
    unplaced = sorted((set(tensors) - set(family.factor_names)) ^ {place.stored for place in found})
    if unplaced:
        state = "is not part of" if unplaced[0] in tensors else "is missing from"
        raise Refused(f"{path}: {unplaced[0]} {state} this model", AGAIN)
    for place in found:
        if tensors[place.stored].shape != place.shape:
            shape = list(tensors[place.stored].shape)
            raise Refused(f"{path}: {place.stored} has shape {shape}, the metadata implies {list(place.shape)}", AGAIN)
    return found


def _grids(files: Files) -> dict[str, str]:
    """Stored name -> grid of each quantized tensor: its block type's own, unless the metadata names another."""
    grids = {name: LAYOUTS[info.type].grid for name, info in files.tensors.items() if info.type in LAYOUTS}
    for key, value in files.metadata.items():
        if not key.startswith(CARRIED):
            continue
        grid = key.removeprefix(CARRIED)
        if grid not in CARRIERS or not isinstance(value.data, list):
            raise Refused(f"{files.path}: {key} is not the names of tensors on a grid that is carried", AGAIN)
        own = CARRIERS[grid].layout.grid
        for name in (raw.decode("ascii", "replace") for raw in value.data):
            if own == grid or grids.get(name) != own:
                raise Refused(f"{files.path}: {key} names {name[:64]}, which is not one tensor on {own}", AGAIN)
            grids[name] = grid
    return grids


@dataclass(frozen=True)
class Description:
    """What a GGUF file says it holds. tensors: name -> (ggml type name, shape [out, in])."""

    architecture: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


def describe(path: Path) -> Description:
    """The architecture and tensors of any GGUF file, its header validated, its tensors unread."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    files = open_files(path, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()})
    tensors = {n: (GGMLQuantizationType(info.type).name, info.shape) for n, info in files.tensors.items()}
    return Description(_architecture(files), tensors)


def _architecture(files: Files) -> str:
    value = files.metadata.get("general.architecture")
    return value.data.decode("utf-8", "replace") if value and isinstance(value.data, bytes) else "unknown"
