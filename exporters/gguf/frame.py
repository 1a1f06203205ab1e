"""What an imported GGUF file holds beside the tensors of its model, kept so that export gives the file back.

The frame is a companion file of the model folder, opaque to everything else: the file's header byte for byte
(metadata, tokenizer, chat template, names, types, offsets), its length, and tensors that are no parameters
(rope factors); of a model split over several files, the headers and lengths of all. Export writes a header, then
every tensor where and in the type that it says; or, asked for files of another size, the same metadata and tensors in
headers made anew.
"""

from collections.abc import Sequence
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
from exporters.gguf.container import SEAL, TensorInfo
from exporters.gguf.floats import TYPES
from exporters.gguf.layouts import LAYOUTS
from exporters.gguf.planned import Part, lay_out
from exporters.gguf.reader import parse_header
from exporters.gguf.split import KEYS, Files, join
from exporters.gguf.writing import write_tensor

HEADER, LENGTH = "header", "length"
AGAIN = "import the GGUF file again"


def save_frame(stored: StoredTensors, folder: Path) -> None:
    """Write the frame of a file into ``folder``."""
    parts = stored.files.parts
    arrays = {name: stored.files.raw(name) for name in stored.files.tensors if name in stored.family.factor_names}
    arrays |= {_header(i): np.frombuffer(contents.header(), np.uint8) for i, contents in enumerate(parts)}
    arrays[LENGTH] = np.array([contents.seen.size for contents in parts], "<u8")
    save_file(arrays, folder / FRAME)


class Frame:
    """The files that ``model`` came as, with its tensors now; see `exporters.gguf.planned.Planned`.

    Raises Refused for tensors that are not the files', or not on their grids.
    """

    def __init__(self, model: QModel) -> None:
        path = model.folder / FRAME
        self._model = model
        try:
            self._arrays: dict[str, NDArray[Any]] = load_file(path)
            lengths = [int(length) for length in self._arrays[LENGTH]]
            headers = [self._arrays[_header(i)].tobytes() for i in range(len(lengths))]
            seen = [Seen(path, length, ()) for length in lengths]
            contents = [parse_header(BytesIO(h), s, SIZES) for h, s in zip(headers, seen, strict=True)]
            self._files = join(contents)
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise Refused(f"{path}: {error}", AGAIN) from None
        family = families.of_file(self._files.metadata)
        self._places = {place.stored: place for place in places_in(self._files, family)}
        self._require_grids({name: grid for name, (grid, _) in model.outline().items()})
        self.parts: Sequence[Part] = (
            [Part(h, [*c.tensors.values()], c.seen.size) for h, c in zip(headers, contents, strict=True)]
            if model.asked.split_max_bytes is None
            else _anew(self._files, model.asked.split_max_bytes)
        )

    def put(self, file: BinaryIO, info: TensorInfo) -> None:
        """Write one tensor, by runs of rows."""
        raw = self._arrays.get(info.name)
        if raw is not None:
            file.write(raw.data)
            return
        place = self._places[info.name]
        grid = LAYOUTS[info.type].grid if info.type in LAYOUTS else FLOAT32
        write_tensor(file, rows_of(self._model.tensors, place.logical), place, info, grid)

    def _require_grids(self, grids: dict[str, str]) -> None:
        expected = {
            place.logical: FLOAT32 if (kind := self._files.tensors[name].type) in TYPES else LAYOUTS[kind].grid
            for name, place in self._places.items()
        }
        for name in sorted(grids.keys() | expected):
            if grids.get(name) != expected.get(name):
                raise Refused(
                    f"{name} is {grids.get(name, 'missing')}, in the GGUF file it came from {expected.get(name)}", AGAIN
                )


def _header(i: int) -> str:
    """What the header of file ``i`` is called in the frame."""
    return f"{HEADER}.{i}" if i else HEADER


def _anew(files: Files, limit: int) -> list[Part]:
    """The same metadata and tensors in other files; headers are sealed if they were."""
    metadata = {key: value for key, value in files.metadata.items() if key not in {*KEYS, SEAL}}
    tensors = [(name, info.shape, info.type, info.size) for name, info in files.tensors.items()]
    return lay_out(metadata, tensors, limit, sealed=SEAL in files.metadata)
