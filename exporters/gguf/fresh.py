"""GGUF made from a model alone: metadata, tokenizer, and every tensor in its grid's block type."""

from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import BinaryIO

import numpy as np

from edgeqaf.checkpoint import QModel
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused
from edgeqaf.runs import Outline, rows_of
from edgeqaf.source import HEAD
from exporters.gguf import families
from exporters.gguf.artifact import CARRIED
from exporters.gguf.blocks import CARRIERS
from exporters.gguf.borrowed import borrowed_tokenizer
from exporters.gguf.container import TensorInfo, Type, Value
from exporters.gguf.family import Family
from exporters.gguf.layouts import F32, F32_FILE
from exporters.gguf.metadata import model_metadata
from exporters.gguf.places import Dimensions, Place
from exporters.gguf.planned import lay_out
from exporters.gguf.tokenizer import tokenizer_metadata
from exporters.gguf.writing import write_tensor


class Fresh:
    """The files of ``model``; see `exporters.gguf.planned.Planned`.

    sealed: whether headers carry their own digests. Raises Refused for what GGUF cannot carry.
    """

    def __init__(self, model: QModel, *, sealed: bool = True) -> None:
        self._model = model
        family = families.of_config(model.config)
        family.check(model.config)
        sizes, outline = family.dimensions(model.config), model.outline()
        places = _placed(model, outline, family, sizes)
        self._outline = outline
        self._places = {place.stored: place for place in places}
        self._factors = family.factors(model.config)
        entries = [(name, values.shape, F32, values.nbytes) for name, values in self._factors.items()]
        entries += [(place.stored, place.shape, *_type_and_size(place, *outline[place.logical])) for place in places]
        weights: Counter[int] = Counter()
        for place in places:
            grid, shape = outline[place.logical]
            if grid in CARRIERS:
                weights[CARRIERS[grid].layout.file_type] += prod(shape)
        metadata = model_metadata(family, model.config, weights.most_common(1)[0][0] if weights else F32_FILE)
        donor = model.asked.tokenizer_from
        metadata |= (
            borrowed_tokenizer(donor, model.folder, sizes.vocab)
            if donor
            else tokenizer_metadata(model.folder, model.config, sizes.vocab)
        )
        metadata |= _carried((place.stored, outline[place.logical][0]) for place in places)
        self.parts = lay_out(metadata, entries, model.asked.split_max_bytes, sealed=sealed)

    def put(self, file: BinaryIO, info: TensorInfo) -> None:
        """Write one tensor, by runs of rows."""
        place = self._places.get(info.name)
        if place is None:
            file.write(np.ascontiguousarray(self._factors[info.name], "<f4").tobytes())
        else:
            grid, _ = self._outline[place.logical]
            write_tensor(file, rows_of(self._model.tensors, place.logical), place, info, grid)


def _placed(model: QModel, outline: Outline, family: Family, sizes: Dimensions) -> list[Place]:
    """The places of the model's tensors, if those are what its config implies."""
    if sizes.layers > len(outline):  # before so many places are made
        raise Refused(f"config.json: {sizes.layers} layers in {len(outline)} tensors", "fetch the model again")
    places = list(family.places(sizes, tied=HEAD not in outline))
    unplaced = sorted(set(outline) ^ {place.logical for place in places})
    if unplaced:
        state = "has no place in" if unplaced[0] in outline else "is missing for"
        raise Refused(
            f"{unplaced[0]} {state} a {model.config['model_type']} model of {sizes.layers} layers in GGUF "
            f"({len(unplaced)} such tensors)",
            "config.json and the tensors must belong to one model",
        )
    return places


def _carried(stored: Iterable[tuple[str, str]]) -> dict[str, Value]:
    """For each grid that travels in another grid's block type, the names of its tensors."""
    names: dict[str, list[bytes]] = {}
    for name, grid in stored:
        if grid in CARRIERS and CARRIERS[grid].layout.grid != grid:
            names.setdefault(grid, []).append(name.encode())
    return {CARRIED + grid: Value(Type.ARRAY, tensors, Type.STRING) for grid, tensors in sorted(names.items())}


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
