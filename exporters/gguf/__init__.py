"""GGUF for llama.cpp: the stored integers, block by block, in one file or split over several.

Quantized tensors go straight from codes to blocks and back; every other tensor is written as
float32, which holds any checkpoint's floats exactly. Grids that ggml has no type for travel in one
that has their weights among its own (`blocks`), and the metadata names them. The bytes depend on the
model alone: no name, date or path is among them (`fresh`). A model that came as a GGUF file goes back into
that file's own frame (`frame`): nothing differs from it but the codes that were tuned. Files of a limited size are
laid out before any is written (`planned`), and read as one (`split`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from edgeqaf.checkpoint import QModel
from edgeqaf.companions import FRAME
from edgeqaf.console import progress
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.protocols import Stored, StoredAs
from edgeqaf.splitnames import split_names
from edgeqaf.statements import Statements
from exporters.gguf import statements
from exporters.gguf.artifact import StoredTensors
from exporters.gguf.base import ImportedTensors, open_base
from exporters.gguf.blocks import CARRIERS
from exporters.gguf.container import TensorInfo
from exporters.gguf.frame import Frame
from exporters.gguf.fresh import Fresh
from exporters.gguf.planned import Planned


class GGUF:
    """The exporter; see `edgeqaf.protocols.Exporter`."""

    filename: ClassVar[str] = "model.gguf"
    tools: ClassVar[tuple[str, ...]] = ()

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
        """The exact size of all files in bytes."""
        return sum(self.sizes(model))

    def sizes(self, model: QModel) -> list[int]:
        """The exact size of each file in bytes."""
        return [part.size for part in _planned(model).parts]

    def export(self, model: QModel, path: Path) -> Path:
        return _write(_planned(model), path)

    def export_floats(self, model: QModel, path: Path) -> None:
        """Write a model of floats as float32, its header unsealed, for tools that edit it (llama.cpp's quantizer)."""
        _write(Fresh(model, sealed=False), path)

    def read_back(self, path: Path) -> Mapping[str, Stored]:
        """Every logical tensor of a file, or of all of which it is the first, from them alone; each is checked."""
        return StoredTensors(path).check_all()

    def stated(self, path: Path) -> Statements:
        """`edgeqaf.statements.States`: metadata by key, and rope factors."""
        return statements.stated(path)

    def restated(self, model: QModel) -> Statements:
        return statements.restated(_planned(model), model.folder)

    def forge(self, path: Path, change: Callable[[Any], object]) -> None:
        """change: of the metadata, `exporters.gguf.container.Value` by key."""
        statements.forge(path, change)

    def tensors(self, path: Path) -> ImportedTensors:
        """The tensors of any GGUF file by logical name, read one at a time."""
        return ImportedTensors(StoredTensors(path))

    def edit(self, path: Path, first: bytes) -> StoredTensors:
        """The tensors of a file by rows, for `edgeqaf.patch`; Refused where there are several files."""
        stored = StoredTensors(path, first)
        count = len(stored.files.parts)
        if count > 1:
            raise Refused(
                f"{path} is the first of {count} files, and a patch changes one",
                f"make them one: llama-gguf-split --merge {path.name} whole.gguf; files that edgeqaf made are sealed "
                f"against that: edgeqaf quantize {path.name} -o base, and export it with --split-max-size 9999G",
            )
        return stored

    def open_base(self, path: Path, folder: Path, tokenizer: Path | None = None, source: Path | None = None) -> QModel:
        """The model in any GGUF file, to be tuned; see `exporters.gguf.base`."""
        return open_base(path, folder, tokenizer, source)


exporter = GGUF()


def _write(planned: Planned, path: Path) -> Path:
    """Write all files and return the first: ``path``, or named after it where there are several."""
    names = split_names(path.name, len(planned.parts))
    done = 0
    with progress("write gguf", sum(part.size for part in planned.parts), "B") as advance:

        def put(file: BinaryIO, info: TensorInfo) -> None:
            nonlocal done
            planned.put(file, info)
            done += info.size
            advance(done, info.name)

        for name, part in zip(names, planned.parts, strict=True):
            with open(path.with_name(name), "xb") as file:
                part.write(file, put)
    return path.with_name(names[0])


def _planned(model: QModel) -> Planned:
    """The files of a model, in the frame of those it came from if it came from any and still has their grids."""
    if not (model.folder / FRAME).is_file():
        return Fresh(model)
    if model.asked.tokenizer_from is not None:
        raise Refused(
            f"the model came as a GGUF file, whose tokenizer it keeps, not that of {model.asked.tokenizer_from}",
            "leave --tokenizer-from out",
        )
    return Frame(model)
