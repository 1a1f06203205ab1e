"""GGUF for llama.cpp: the stored integers, block by block, in one file.

Quantized tensors go straight from codes to blocks and back; every other tensor is written as
float32, which holds any checkpoint's floats exactly. Grids that ggml has no type for travel in one
that has their weights among its own (`blocks`), and the metadata names them. The bytes depend on the
model alone: no name, date or path is among them. A model that came as a GGUF file goes back into that
file's own frame (`frame`): nothing differs from it but the codes that were tuned.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeqaf.checkpoint import QModel
from edgeqaf.companions import FRAME
from edgeqaf.digest import Floats, Tensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.protocols import Stored, StoredAs
from edgeqaf.qtensor import QTensor
from edgeqaf.source import HEAD
from exporters.gguf import families
from exporters.gguf.artifact import CARRIED, StoredTensors
from exporters.gguf.base import open_base
from exporters.gguf.blocks import CARRIERS, pack
from exporters.gguf.borrowed import borrowed_tokenizer
from exporters.gguf.container import TensorInfo, Type, Value, describe_tensors, padded, seal
from exporters.gguf.frame import Frame
from exporters.gguf.layouts import F32, F32_FILE
from exporters.gguf.metadata import model_metadata
from exporters.gguf.places import Place
from exporters.gguf.tokenizer import tokenizer_metadata

FLOAT32 = "float32"  # what a manifest calls the grid of a float tensor


@dataclass(frozen=True)
class Plan:
    """Everything about the file but the tensors' values: its header, and what follows in which order."""

    header: bytes
    infos: list[TensorInfo]
    places: list[Place]
    factors: Mapping[str, Floats]

    @property
    def size(self) -> int:
        return len(self.header) + sum(padded(info.size) for info in self.infos)


class GGUF:
    """The exporter; see `edgeqaf.protocols.Exporter`."""

    filename: ClassVar[str] = "model.gguf"

    def refuses(self, grid: Grid) -> str | None:
        if grid.name in CARRIERS:
            return None
        if grid.zero is Zero.CODE:
            return (
                f"ggml has no block type that holds {grid.name} exactly: none has an integer zero, and in Q4_1 "
                "the minimum -zero * scale would be rounded to float16"
            )
        return f"ggml has no block type that holds {grid.name} exactly"

    def stored_as(self, grid: Grid) -> StoredAs:
        """The block type that carries a grid which is not refused."""
        layout = CARRIERS[grid.name].layout
        return StoredAs(layout.name, layout.block.itemsize * 8 / layout.weights)

    def plan(self, model: QModel) -> int:
        """The exact size of the file in bytes."""
        frame = _frame(model)
        return _plan(model).size if frame is None else frame.size

    def export(self, model: QModel, path: Path) -> None:
        frame = _frame(model)
        if frame is not None:
            with open(path, "xb") as file:
                frame.write(model, file)
            return
        plan = _plan(model)
        with open(path, "xb") as file:
            file.write(plan.header)
            infos = iter(plan.infos)
            for factors in plan.factors.values():
                _write(file, factors, next(infos))
            for place, info in zip(plan.places, infos, strict=True):
                _write(file, _in_file_form(model.tensors[place.logical], place), info)

    def read_back(self, path: Path) -> Mapping[str, Stored]:
        """Every logical tensor of a file, from the file alone; all are checked first."""
        return StoredTensors(path).check_all()

    def open_base(self, path: Path, folder: Path, tokenizer: Path | None = None) -> QModel:
        """The model in any GGUF file, to be tuned; see `exporters.gguf.base`."""
        return open_base(path, folder, tokenizer)


exporter = GGUF()


def _frame(model: QModel) -> Frame | None:
    """The frame of the file that the model came from, if it came from one and still has its grids."""
    if not (model.folder / FRAME).is_file():
        return None
    if model.tokenizer_from is not None:
        raise Refused(
            f"the model came as a GGUF file, whose tokenizer it keeps, not that of {model.tokenizer_from}",
            "leave --tokenizer-from out",
        )
    frame = Frame(model.folder)
    frame.require(_outline(model)[0])
    return frame


def _plan(model: QModel) -> Plan:
    family = families.of_config(model.config)
    family.check(model.config)
    sizes = family.dimensions(model.config)
    grids, shapes = _outline(model)
    if sizes.layers > len(grids):
        raise Refused(f"config.json: {sizes.layers} layers in {len(grids)} tensors", "fetch the model again")
    wanted = list(family.places(sizes, tied=HEAD not in grids))
    unplaced = sorted(set(grids) ^ {place.logical for place in wanted})
    if unplaced:
        state = "has no place in" if unplaced[0] in grids else "is missing for"
        raise Refused(
            f"{unplaced[0]} {state} a {model.config['model_type']} model of {sizes.layers} layers in GGUF "
            f"({len(unplaced)} such tensors)",
            "config.json and the tensors must belong to one model",
        )
    factors = family.factors(model.config)
    entries = [(name, values.shape, F32, values.nbytes) for name, values in factors.items()]
    weights: Counter[int] = Counter()
    for place in wanted:
        grid = grids[place.logical]
        entries.append((place.stored, place.shape, *_type_and_size(place, grid, shapes[place.logical])))
        if grid in CARRIERS:
            weights[CARRIERS[grid].layout.file_type] += prod(place.shape)
    file_type = weights.most_common(1)[0][0] if weights else F32_FILE
    metadata = model_metadata(family, model.config, file_type)
    donor = model.tokenizer_from
    metadata |= (
        borrowed_tokenizer(donor, model.folder, sizes.vocab)
        if donor
        else tokenizer_metadata(model.folder, model.config, sizes.vocab)
    )
    metadata |= _carried((place.stored, grids[place.logical]) for place in wanted)
    infos = describe_tensors(entries)
    return Plan(seal(metadata, infos), infos, wanted, factors)


def _carried(stored: Iterable[tuple[str, str]]) -> dict[str, Value]:
    """For each grid that travels in another grid's block type, the names of its tensors."""
    names: dict[str, list[bytes]] = {}
    for name, grid in stored:
        if grid in CARRIERS and CARRIERS[grid].layout.grid != grid:
            names.setdefault(grid, []).append(name.encode())
    return {CARRIED + grid: Value(Type.ARRAY, tensors, Type.STRING) for grid, tensors in sorted(names.items())}


def _outline(model: QModel) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Grid name and shape of each tensor; a saved model's manifest tells without reading them."""
    stated = model.manifest.get("tensors")
    if stated is not None:
        return {n: e["grid"] for n, e in stated.items()}, {n: tuple(e["shape"]) for n, e in stated.items()}
    grids, shapes = {}, {}
    for name, tensor in model.tensors.items():
        grids[name] = tensor.grid.name if isinstance(tensor, QTensor) else FLOAT32
        shapes[name] = tuple(tensor.shape)
    return grids, shapes


def _type_and_size(place: Place, grid: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if shape != place.shape:
        raise Refused(
            f"{place.logical} has shape {list(shape)}, config.json implies {list(place.shape)}",
            "config.json belongs to another model",
        )
    if grid == FLOAT32:
        return F32, 4 * prod(shape)
    if grid not in CARRIERS:
        raise Refused(
            f"{place.logical} is on grid {grid}, for which ggml has no block type",
            f"quantize with one of {', '.join(CARRIERS)}, or leave GGUF out",
        )
    if len(shape) != 2:
        raise Refused(f"{place.logical} is on grid {grid} but has shape {list(shape)}", "keep vectors in float")
    layout = CARRIERS[grid].layout
    return layout.ggml_type, prod(shape) // layout.weights * layout.block.itemsize


def _in_file_form(tensor: Tensor, place: Place) -> NDArray[Any]:
    tensor = place.to_file(tensor)
    return pack(tensor) if isinstance(tensor, QTensor) else tensor.astype("<f4", copy=False)


def _write(file: BinaryIO, values: NDArray[Any], info: TensorInfo) -> None:
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    if raw.nbytes != info.size:
        raise Refused(
            f"{info.name} takes {raw.nbytes} bytes, {info.size} by its model's manifest", "make the model folder again"
        )
    file.write(raw.data)
    file.write(bytes(padded(raw.nbytes) - raw.nbytes))
