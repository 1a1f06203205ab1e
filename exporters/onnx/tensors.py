"""The tensors of an ONNX folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeqaf import runs
from edgeqaf.digest import FLOAT32
from edgeqaf.protocols import Stored
from edgeqaf.runs import Outline, Rows, Run
from exporters.onnx.data import Data
from exporters.onnx.strips import InFolder


class FolderTensors(Mapping[str, Stored]):
    """Tensors of an ONNX folder, read and checked as they are asked for, by rows or one at a time.

    path: of the data file. program: `edgeqaf.protocols.Artifact.program`.
    """

    def __init__(self, path: Path, data: Data, program: str) -> None:
        self._path, self._layouts, self._columns, self.program = path, data.layouts, data.columns, program

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        return name in self._layouts  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Stored:
        layout, rows = self._layouts[name], self.rows(name)
        shape, grid = layout.shape, layout.grid
        tensor: Any = rows(0, shape[0]) if grid is None else runs.whole(rows, grid, (shape[0], shape[1]))
        return Stored(tensor, layout.stored[0].name)

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        read, digits = InFolder(self._path, self._layouts[name]).read, self._columns.get(name)

        def checked(start: int, stop: int) -> Run:
            run = read(start, stop)
            if digits is not None:
                digits.check(self._path, start, run)
            return run

        return checked

    def outline(self) -> Outline:
        """`edgeqaf.checkpoint.QModel.outline`, from the graph alone."""
        return {n: (x.grid.name if x.grid else FLOAT32, x.shape) for n, x in self._layouts.items()}
