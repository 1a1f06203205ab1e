"""A model in one GGUF file, or split over several as llama.cpp's gguf-split makes and its loader opens them.

The first file has all metadata. Each describes its own tensors, and says in three keys its number, how many files
there are, and how many tensors are in all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused
from edgeqaf.splitnames import numbers_in, split_names
from exporters.gguf.container import TensorInfo, Type, Value
from exporters.gguf.numbers import Metadata
from exporters.gguf.reader import Contents, check_seal, parse

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"  # the number is from 0 on
KEYS = {NUMBER: Type.UINT16, COUNT: Type.UINT16, TENSORS: Type.INT32}
MIXED = "files of several models, or of several splits of one, are mixed; fetch or make all of them again"


@dataclass(frozen=True)
class Files:
    """The headers of a model's files, in order, and which file each tensor is in; `join` makes it."""

    parts: Sequence[Contents]
    homes: Mapping[str, Contents]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.parts[0].path

    @property
    def metadata(self) -> Metadata:
        """What the first file says."""
        return self.parts[0].metadata

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What all of them hold, in order."""
        return {name: contents.tensors[name] for name, contents in self.homes.items()}

    def raw(self, name: str) -> NDArray[np.uint8]:
        """`Contents.raw` of a tensor."""
        return self.homes[name].raw(self.tensors[name])

    def check_seals(self) -> None:
        """`check_seal` of every file; all are sealed or none is."""
        sealed = [check_seal(contents) for contents in self.parts]
        for contents, found in zip(self.parts, sealed, strict=True):
            if found != sealed[0]:
                raise Refused(
                    f"{contents.path}: its header is {'' if found else 'not '}sealed, unlike the first", MIXED
                )


def open_files(path: Path, sizes: Mapping[int, tuple[int, int]], first: bytes = b"") -> Files:
    """The headers of the model whose only or first file is ``path``; the others are beside it. Arguments: `parse`.

    Raises Refused for a file that is not the first, or not named as its metadata says, and for others that are missing
    or belong to another model.
    """
    contents = parse(path, sizes, first)
    (number, count, _), (whole, named, of) = _numbers(contents), numbers_in(path.name)
    if (number + 1, count) != (named, of):
        raise Refused(
            f"{path}: by its metadata file {number + 1} of {count}, by its name file {named} of {of}",
            "give it the name it was made with",
        )
    names = split_names(whole, count)
    if number:
        raise Refused(f"{path} is file {named} of {count} of a model", f"name the first: {path.with_name(names[0])}")
    others = [path.with_name(name) for name in names[1:]]
    for other in others:
        if not other.exists():
            raise Refused(f"{other} is missing: {path.name} is the first of {count} files", "put it beside the first")
    return join([contents, *(parse(other, sizes) for other in others)])


def join(parts: Sequence[Contents]) -> Files:
    """Some headers as one; Refused unless they are those of all files of a model, in order."""
    expected = (len(parts), _numbers(parts[0])[2])
    for i, contents in enumerate(parts):
        number, *found = _numbers(contents)
        if (number, *found) != (i, *expected):
            raise Refused(
                f"{contents.path}: file {number + 1} of {found[0]} with {found[1]} tensors in all by its metadata, "
                f"file {i + 1} of {expected[0]} with {expected[1]} expected",
                MIXED,
            )
    homes: dict[str, Contents] = {}
    for contents in parts:
        for name in contents.tensors:
            if name in homes:
                raise Refused(f"{contents.path}: tensor {name} is in {homes[name].path.name} too", MIXED)
            homes[name] = contents
    if len(homes) != expected[1]:
        raise Refused(f"{parts[0].path}: {TENSORS} is {expected[1]}, the files have {len(homes)} tensors", MIXED)
    return Files(parts, homes)


def split_keys(number: int, count: int, tensors: int) -> dict[str, Value]:
    """The three keys of a file."""
    return {key: Value(KEYS[key], value) for key, value in zip(KEYS, (number, count, tensors), strict=True)}


def _numbers(contents: Contents) -> tuple[int, int, int]:
    """(number from 0 on, count, tensors) that a file's keys say; (0, 1, its own) without them.

    A count of zero is what gguf-split leaves in a file that it has merged.
    """
    count = contents.metadata.get(COUNT)
    if count is None or (count.type, count.data) == (KEYS[COUNT], 0):
        return 0, 1, len(contents.tensors)
    return _number(contents, NUMBER), _number(contents, COUNT), _number(contents, TENSORS)


def _number(contents: Contents, key: str) -> int:
    value = contents.metadata.get(key)
    if value is None or value.type is not KEYS[key] or not isinstance(value.data, int):
        found = "missing" if value is None else f"of type {value.type.name}"
        raise Refused(f"{contents.path}: metadata {key} is {found}, not a {KEYS[key].name} number", MIXED)
    return value.data
