"""Tensors of a GGUF file as ggml itself finds and decodes them.

ggml's own reader parses the file and says where each tensor lies, as llama.cpp's loader does; the
bytes are then mapped, never copied whole. Decoding is the type's ``to_float``.
"""

from ctypes import (
    c_bool,
    c_double,
    c_float,
    c_int8,
    c_int16,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.splitnames import names_from
from runtime_tests.ggml import structs
from runtime_tests.ggml.library import Library

STRING = 8  # enum gguf_type
NUMBERS: dict[int, Any] = {
    0: c_uint8, 1: c_int8, 2: c_uint16, 3: c_int16, 4: c_uint32, 5: c_int32, 6: c_float, 7: c_bool, 10: c_uint64,
    11: c_int64, 12: c_double,
}  # fmt: skip


@dataclass(frozen=True)
class FileTensor:
    """A tensor as the file stores it.

    shape: logical order, slowest axis first: [out, in] for a matrix; rows as the file has them.
    data:  its bytes, mapped.
    """

    name: str
    type: int
    type_name: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def rows(self, some: NDArray[np.int64]) -> "FileTensor":
        """Some of its rows, in that order; of consecutive ones nothing is copied."""
        whole = self.data.reshape(self.shape[0], -1)
        start, stop = int(some[0]), int(some[-1]) + 1
        picked = whole[start:stop] if (np.diff(some) == 1).all() else whole[some]
        return replace(self, shape=(len(some), *self.shape[1:]), data=picked.reshape(-1))


class GgufFile:
    """A GGUF file opened by ggml, or the files of which it is the first. Raises Refused for one it does not accept."""

    def __init__(self, library: Library, path: Path) -> None:
        self._c, self._path = library.c, path
        self._parts: list[_Part] = []
        try:
            for name in names_from(path.name):
                self._parts.append(_Part(library, path.with_name(name)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def tensor(self, name: str) -> FileTensor:
        """The tensor ``name``; raises Refused where no file has it, or one ends before its data does."""
        found = next(filter(None, (part.tensor(name) for part in self._parts)), None)
        if found is None:
            raise Refused(f"{self._path}: llama.cpp finds no tensor {name}", "export the model again")
        return found

    def has(self, name: str) -> bool:
        """Whether there is a tensor ``name``."""
        return any(part.tensor(name) is not None for part in self._parts)

    def value(self, key: str) -> float | int | str | None:
        """A number or text of the metadata, or None where the file has none; Refused for a list."""
        return self._parts[0].value(key)

    def decode(self, tensor: FileTensor) -> Floats:
        """ggml's own decode: float32, shaped like the tensor."""
        if tensor.type == structs.TYPE_F32:  # the one type without a to_float
            return tensor.data.view(np.float32).reshape(tensor.shape).copy()
        weights = np.empty(tensor.shape, np.float32)
        to_float = structs.ToFloat(_traits(self._c, tensor.type).to_float)
        to_float(tensor.data.ctypes.data, weights.ctypes.data, weights.size)
        return weights


class _Part:
    """One file opened by ggml."""

    def __init__(self, library: Library, path: Path) -> None:
        self._c, self._path = library.c, path
        library.log.clear()
        self._gguf = self._c.gguf_init_from_file(bytes(path), structs.GgufParams(no_alloc=True, ctx=None))
        if not self._gguf:
            raise Refused(f"{path}: llama.cpp does not accept it: {library.log.message()}", "export the model again")
        self._size = path.stat().st_size

    def close(self) -> None:
        self._c.gguf_free(self._gguf)

    def tensor(self, name: str) -> FileTensor | None:
        """The tensor ``name``, or None where the file has none."""
        index = self._c.gguf_find_tensor(self._gguf, name.encode())
        if index < 0:
            return None
        start = self._c.gguf_get_data_offset(self._gguf) + self._c.gguf_get_tensor_offset(self._gguf, index)
        end = start + self._c.gguf_get_tensor_size(self._gguf, index)
        if end > self._size:
            raise Refused(
                f"{self._path}: {name} ends at byte {end}, the file at {self._size}", "export the model again"
            )
        kind = self._c.gguf_get_tensor_type(self._gguf, index)
        sizes = list(self._c.gguf_get_tensor_ne(self._gguf, index).contents)
        while len(sizes) > 1 and sizes[-1] == 1:
            sizes.pop()
        data = np.memmap(self._path, np.uint8, "r", start, end - start)  # of its own: what is read does not stay
        return FileTensor(name, kind, _traits(self._c, kind).type_name.decode(), (*reversed(sizes),), data)

    def value(self, key: str) -> float | int | str | None:
        index = self._c.gguf_find_key(self._gguf, key.encode())
        if index < 0:
            return None
        kind = self._c.gguf_get_kv_type(self._gguf, index)
        if kind == STRING:
            text: str = self._c.gguf_get_val_str(self._gguf, index).decode("utf-8", "replace")
            return text
        if kind not in NUMBERS:
            raise Refused(f"{self._path}: {key} is a list, not a number", "export the model again")
        number: float | int = NUMBERS[kind].from_address(self._c.gguf_get_val_data(self._gguf, index)).value
        return number


def _traits(c: Any, kind: int) -> Any:
    return c.ggml_get_type_traits(kind).contents
