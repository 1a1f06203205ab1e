"""Reading exported files back, and telling what a foreign GGUF file holds. Both take untrusted files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from edgeqaf import plugins
from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.protocols import Stored
from edgeqaf.qtensor import check
from exporters.gguf import families
from exporters.gguf.blocks import CARRIERS, unpack
from exporters.gguf.container import TensorInfo, padded
from exporters.gguf.family import OUTPUT
from exporters.gguf.layouts import F32, LAYOUTS
from exporters.gguf.places import Place
from exporters.gguf.reader import Contents, check_seal, parse

CARRIED = "edgeqaf.carried."  # metadata key: this and a grid's name; value: the tensors stored in another's type
SIZES = {F32: (1, 4)} | {x.ggml_type: (x.weights, x.block.itemsize) for x in LAYOUTS.values()}
AGAIN = "the file was damaged or not made by this exporter; export it again"


class StoredTensors(Mapping[str, Stored]):
    """The logical tensors of an exported file: all checked at the start, then read as they are asked for."""

    def __init__(self, path: Path) -> None:
        self._contents = parse(path, SIZES)
        check_seal(self._contents)
        self._places = {place.logical: place for place in _places(self._contents)}
        self._grids = _grids(self._contents)
        for name in self._places:
            self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Stored:
        place = self._places[name]
        info = self._contents.tensors[place.stored]
        where = f"{self._contents.path}: {info.name}"
        raw = self._contents.read(self._contents.start + info.offset, padded(info.size))
        if any(raw[info.size :]):
            raise Refused(f"{where} is followed by padding that is not zero", AGAIN)
        tensor = _tensor(raw[: info.size], info, self._grids.get(info.name), where)
        return Stored(place.from_file(tensor), place.stored, place.rows)


def _places(contents: Contents) -> list[Place]:
    """Where each tensor of the model is, provided the file has exactly the tensors its metadata implies."""
    path, tensors = contents.path, contents.tensors
    family = families.of_file(contents.metadata)
    sizes = family.dimensions_in(contents.metadata)
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


def _grids(contents: Contents) -> dict[str, str]:
    """Stored name -> grid of each quantized tensor: its block type's own, unless the metadata names another."""
    grids = {name: LAYOUTS[info.type].grid for name, info in contents.tensors.items() if info.type != F32}
    for key, value in contents.metadata.items():
        if not key.startswith(CARRIED):
            continue
        grid = key.removeprefix(CARRIED)
        if grid not in CARRIERS or not isinstance(value.data, list):
            raise Refused(f"{contents.path}: {key} is not the names of tensors on a grid that is carried", AGAIN)
        own = CARRIERS[grid].layout.grid
        for name in (raw.decode("ascii", "replace") for raw in value.data):
            if own == grid or grids.get(name) != own:
                raise Refused(f"{contents.path}: {key} names {name[:64]}, which is not one tensor on {own}", AGAIN)
            grids[name] = grid
    return grids


def _tensor(raw: bytes, info: TensorInfo, grid: str | None, name: str) -> Tensor:
    if grid is not None:
        if len(info.shape) != 2:
            raise Refused(f"{name} is a quantized tensor of shape {list(info.shape)}", AGAIN)
        return check(unpack(raw, plugins.find("grids", grid), (info.shape[0], info.shape[1])), name)
    values = np.frombuffer(raw, "<f4").reshape(info.shape)
    if not np.isfinite(values).all():
        index = [int(i[0]) for i in np.nonzero(~np.isfinite(values))]
        raise Refused(f"{name}{index} is {values[tuple(index)]}", AGAIN)
    return values.astype(np.float32)


@dataclass(frozen=True)
class Description:
    """What a GGUF file says it holds. tensors: name -> (ggml type name, shape [out, in])."""

    architecture: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


def describe(path: Path) -> Description:
    """The architecture and tensors of any GGUF file, its header validated, its tensors unread."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    contents = parse(path, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()})
    tensors = {n: (GGMLQuantizationType(info.type).name, info.shape) for n, info in contents.tensors.items()}
    return Description(_architecture(contents), tensors)


def refuse_as_base(path: Path, grid: Grid) -> NoReturn:
    """Say why a GGUF file cannot be quantized, naming the first matrix that does not fit ``grid`` either."""
    found = describe(path)
    cause = f"{path} is a GGUF file ({found.architecture}, {len(found.tensors)} tensors); importing GGUF is not offered"
    for name, (_, shape) in found.tensors.items():
        if name.startswith("blk.") and len(shape) == 2 and not grid.fits(shape[1]):
            cause += f", and the rows of {shape[1]} in {name} do not divide into {grid.name}'s blocks of {grid.block}"
            break
    raise Refused(cause, "pass the Hugging Face folder that the file was converted from (config.json, *.safetensors)")


def _architecture(contents: Contents) -> str:
    value = contents.metadata.get("general.architecture")
    return value.data.decode("utf-8", "replace") if value and isinstance(value.data, bytes) else "unknown"
