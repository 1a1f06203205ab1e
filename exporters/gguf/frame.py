"""What an imported GGUF file holds beside the tensors of its model, kept so that export gives the file back.

The frame is a companion file of the model folder, opaque to everything else: the file's header byte for byte
(metadata, tokenizer, chat template, names, types, offsets), its length, and tensors that are no parameters
(rope factors). Export writes the header, then every tensor where and in the type that the header says.
"""

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from edgeqaf.checkpoint import QModel
from edgeqaf.companions import FRAME
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused
from edgeqaf.runs import rows_of
from edgeqaf.untrusted import Seen
from exporters.gguf import families
from exporters.gguf.artifact import SIZES, StoredTensors, places_in
from exporters.gguf.floats import TYPES
from exporters.gguf.layouts import LAYOUTS
from exporters.gguf.reader import Contents, parse_header
from exporters.gguf.writing import write_tensor

HEADER, LENGTH = "header", "length"
AGAIN = "import the GGUF file again"


def save_frame(stored: StoredTensors, folder: Path) -> None:
    """Write the frame of a file into ``folder``."""
    contents = stored.contents
    factors = [info for name, info in contents.tensors.items() if name in stored.family.factor_names]
    arrays = {info.name: contents.raw(info) for info in factors}
    arrays[HEADER] = np.frombuffer(contents.header(), np.uint8)
    arrays[LENGTH] = np.array([contents.seen.size], "<u8")
    save_file(arrays, folder / FRAME)


class Frame:
    """The file that ``model`` came as, with its tensors now. size: in bytes.

    Raises Refused for tensors that are not the file's, or not on its grids.
    """

    def __init__(self, model: QModel) -> None:
        path = model.folder / FRAME
        self._model = model
        try:
            self._arrays: dict[str, NDArray[Any]] = load_file(path)
            self._header = self._arrays[HEADER].tobytes()
            self.size = int(self._arrays[LENGTH][0])
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise Refused(f"{path}: {error}", AGAIN) from None
        self._contents: Contents = parse_header(BytesIO(self._header), Seen(path, self.size, ()), SIZES)
        family = families.of_file(self._contents.metadata)
        self._places = {place.stored: place for place in places_in(self._contents, family)}
        self._require_grids({name: grid for name, (grid, _) in model.outline().items()})

    def write(self, file: BinaryIO) -> None:
        """Write all of it, by runs of rows."""
        file.write(self._header)
        for name, info in self._contents.tensors.items():
            raw, place = self._arrays.get(name), self._places.get(name)
            if raw is not None:
                file.write(raw.data)
            else:
                assert place is not None
                write_tensor(file, rows_of(self._model.tensors, place.logical), place, info)
            file.write(bytes(self._contents.padding(info)))

    def _require_grids(self, grids: dict[str, str]) -> None:
        expected = {
            place.logical: FLOAT32 if (kind := self._contents.tensors[name].type) in TYPES else LAYOUTS[kind].grid
            for name, place in self._places.items()
        }
        for name in sorted(grids.keys() | expected):
            if grids.get(name) != expected.get(name):
                raise Refused(
                    f"{name} is {grids.get(name, 'missing')}, in the GGUF file it came from {expected.get(name)}", AGAIN
                )
