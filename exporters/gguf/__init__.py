"""GGUF for llama.cpp: the stored integers, block by block, in one file.

Quantized tensors go straight from codes to blocks and back; every other tensor is written as
float32, which holds any checkpoint's floats exactly. Grids that ggml has no type for travel in one
that has their weights among its own (`blocks`), and the metadata names them. The bytes depend on the
model alone: no name, date or path is among them (`fresh`). A model that came as a GGUF file goes back into
that file's own frame (`frame`): nothing differs from it but the codes that were tuned.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeqaf.checkpoint import QModel
from edgeqaf.companions import FRAME
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid, Zero
from edgeqaf.protocols import Stored, StoredAs
from exporters.gguf.artifact import StoredTensors
from exporters.gguf.base import ImportedTensors, open_base
from exporters.gguf.blocks import CARRIERS
from exporters.gguf.frame import Frame
from exporters.gguf.fresh import Fresh


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
        return _file(model).size

    def export(self, model: QModel, path: Path) -> None:
        planned = _file(model)
        with open(path, "xb") as file:
            planned.write(file)

    def export_floats(self, model: QModel, path: Path) -> None:
        """Write a model of floats as float32, its header unsealed, for tools that edit it (llama.cpp's quantizer)."""
        planned = Fresh(model, sealed=False)
        with open(path, "xb") as file:
            planned.write(file)

    def read_back(self, path: Path) -> Mapping[str, Stored]:
        """Every logical tensor of a file, from the file alone; all are checked first."""
        return StoredTensors(path).check_all()

    def tensors(self, path: Path) -> ImportedTensors:
        """The tensors of any GGUF file by logical name, read one at a time."""
        return ImportedTensors(StoredTensors(path))

    def edit(self, path: Path, first: bytes) -> StoredTensors:
        """The tensors of a file by rows, for `edgeqaf.patch`."""
        return StoredTensors(path, first)

    def open_base(self, path: Path, folder: Path, tokenizer: Path | None = None, source: Path | None = None) -> QModel:
        """The model in any GGUF file, to be tuned; see `exporters.gguf.base`."""
        return open_base(path, folder, tokenizer, source)


exporter = GGUF()


def _file(model: QModel) -> Fresh | Frame:
    """The file of a model, in the frame of the one it came from if it came from one and still has its grids."""
    if not (model.folder / FRAME).is_file():
        return Fresh(model)
    if model.tokenizer_from is not None:
        raise Refused(
            f"the model came as a GGUF file, whose tokenizer it keeps, not that of {model.tokenizer_from}",
            "leave --tokenizer-from out",
        )
    return Frame(model)
