"""What a long quantization has finished, layer by layer, so that one that was killed goes on from there.

.NAME.halfway/          beside the folder NAME that will be written, removed once it is
  made-of.json          all that decides the bits; of another model, text or option, the folder is begun anew
  layer-00003.safetensors   the quantized tensors of a layer, as they lie in a model folder; whole or absent
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.runs import kind_of
from edgeqaf.staging import staged
from edgeqaf.weightsfile import WeightsFile, write_all

MADE_OF = "made-of.json"


class Halfway:
    """out: the folder that will be written. made_of: JSON, equal for runs that give the same bits. grid: its name."""

    def __init__(self, out: Path, made_of: Mapping[str, Any], grid: str) -> None:
        self.folder = out.absolute().with_name(f".{out.name}.halfway")
        self._made_of, self._grid = dict(made_of), grid
        try:
            same = read_json(self.folder / MADE_OF) == self._made_of
        except Refused:
            same = False
        if not same:
            self.clear()

    def layer(self, index: int, names: list[str]) -> Mapping[str, Tensor] | None:
        """The tensors of a finished layer, read as they are asked for; None for one that is not finished."""
        file = self._file(index)
        if not file.is_file():
            return None
        return WeightsFile(file, file, {name: {"grid": self._grid} for name in names})

    def finish(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MADE_OF).is_file():
            with staged(self.folder / MADE_OF) as part:
                write_json(part, self._made_of)
        with staged(self._file(index), force=True) as part:
            for _ in write_all(part, tensors, {name: kind_of(tensors[name]) for name in tensors}):
                pass

    def clear(self) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def _file(self, index: int) -> Path:
        return self.folder / f"layer-{index:05d}.safetensors"
