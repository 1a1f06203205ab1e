"""A GGUF file opened as a model to tune: its integers as they are, config.json and tokenizer from its metadata.

The tensors keep their bits: codes and block parameters in their grids, floats widened to float32. What transformers
needs and a GGUF file says in other words is derived: config.json by the file's family, tokenizer.json by
`exporters.gguf.tokenizer_json` (or copied from a folder that the user names).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeqaf.checkpoint import QModel
from edgeqaf.companions import CONFIG, TOKENIZER_FILES, copy_companions
from edgeqaf.digest import Floats, Tensor
from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.runs import Rows
from edgeqaf.source import HEAD
from exporters.gguf.artifact import StoredTensors
from exporters.gguf.floats import widen
from exporters.gguf.frame import save_frame
from exporters.gguf.numbers import Metadata
from exporters.gguf.rows import InFile
from exporters.gguf.tokenizer_json import tokenizer_files

SPECIAL = {"bos": "bos", "eos": "eos", "padding": "pad"}  # as metadata calls them -> as config.json does


class ImportedTensors(Mapping[str, Tensor]):
    """The tensors of a file by logical name; raises Refused for one that export could not give back."""

    def __init__(self, stored: StoredTensors) -> None:
        self._stored = stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # the mixin's would read the tensor

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`, from the file's header alone."""
        return self._stored.outline()

    def __getitem__(self, name: str) -> Tensor:
        return self._checked(name).whole()

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        return self._checked(name).read

    def _checked(self, name: str) -> InFile:
        found = self._stored.located(name)
        if found.place.added:
            self._require_given_back(found)
        return found

    def _require_given_back(self, found: InFile) -> None:
        """Refuse values from which the file's cannot be had back."""
        tensor, place, contents = found.whole(), found.place, found.contents
        if isinstance(tensor, np.ndarray):
            again = np.asarray(place.to_file(tensor))
            original = widen(contents.raw(found.info), found.info.type, found.info.shape, place.stored)
            if (again.view(np.uint32) != original.view(np.uint32)).any():
                raise Refused(
                    f"{place.stored} holds values that are no float32 plus {place.added:g}",
                    "convert the model to GGUF again from its checkpoint",
                )


def open_base(path: Path, folder: Path, tokenizer: Path | None = None, source: Path | None = None) -> QModel:
    """The model in a GGUF file; its companion files are written into ``folder``, an empty one.

    tokenizer: a Hugging Face folder to take the tokenizer from instead of the file's metadata.
    source: the Hugging Face folder that the file was made from, to take all companion files from.
    """
    stored = StoredTensors(path)
    save_frame(stored, folder)
    if source is not None:
        copy_companions(source, folder)
        return QModel(read_json(folder / CONFIG), ImportedTensors(stored), folder)
    metadata = stored.files.metadata
    special = _special_ids(metadata)
    config = stored.family.config(metadata, _factors(stored)) | special
    config["tie_word_embeddings"] = HEAD not in stored
    config["torch_dtype"] = "float32"
    files: Mapping[str, bytes] = (
        {name: (tokenizer / name).read_bytes() for name in TOKENIZER_FILES if (tokenizer / name).is_file()}
        if tokenizer
        else tokenizer_files(metadata)
    )
    if not {"tokenizer.json", "tokenizer.model"} & files.keys():
        raise Refused(f"{tokenizer} has no tokenizer.json", "name the Hugging Face folder of the model's tokenizer")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_json(folder / CONFIG, config)
    if special:
        write_json(folder / "generation_config.json", special)
    return QModel(config, ImportedTensors(stored), folder)


def _factors(stored: StoredTensors) -> dict[str, Floats]:
    return {
        name: widen(stored.files.raw(name), info.type, info.shape, name)
        for name, info in stored.files.tensors.items()
        if name in stored.family.factor_names
    }


def _special_ids(metadata: Metadata) -> dict[str, Any]:
    """Ids of special tokens as config.json names them, without those that are no token (4294967295 means none)."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens.data) if tokens and isinstance(tokens.data, list) else 0
    found = {}
    for theirs, ours in SPECIAL.items():
        value = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if value is not None and isinstance(value.data, int) and 0 <= value.data < count:
            found[f"{ours}_token_id"] = value.data
    return found
