"""How the tensors of a model lie in its ``model.safetensors``; see `edgeqaf.checkpoint` for the folder around it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from edgeqaf import parts, plugins
from edgeqaf.digest import Floats, Tensor
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.packing import WIDTHS, pack_codes, unpack_codes
from edgeqaf.qtensor import QTensor, check
from edgeqaf.tensorfile import TensorFile

FLOAT32 = "float32"  # what a manifest calls the grid of a float tensor


def stored(name: str, grid: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(array of ``model.safetensors``, its shape) of all that hold one logical tensor."""
    if grid == FLOAT32:
        yield name, shape
        return
    found: Grid = plugins.find("grids", grid)
    for part, (out, columns) in parts.shapes(found, (shape[0], shape[1])).items():
        yield f"{name}.{part}", (out, columns * WIDTHS[found.bits] // 8 if part == parts.CODES else columns)


def pack(name: str, tensor: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays that hold one logical tensor; raises GridError for one that is not on its grid."""
    if not isinstance(tensor, QTensor):
        return {name: _narrowest(np.asarray(tensor, order="C"))}
    arrays = parts.split(check(tensor, name))
    arrays[parts.CODES] = pack_codes(tensor.codes, tensor.grid)
    return {f"{name}.{part}": array for part, array in arrays.items()}


def _narrowest(values: Floats) -> np.ndarray[Any, Any]:
    """float32 values as bfloat16 or float16 where that holds every one of them."""
    with np.errstate(over="ignore"):  # becomes infinite, which is another value
        for dtype in (ml_dtypes.bfloat16, np.float16):
            narrow: np.ndarray[Any, Any] = values.astype(dtype)
            if np.array_equal(narrow.astype(np.float32).view(np.uint32), values.view(np.uint32)):
                return narrow
    return values


class WeightsFile(Mapping[str, Tensor]):
    """Tensors of a model folder, read and checked one at a time."""

    def __init__(self, file: Path, manifest: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries = entries
        self._file = TensorFile(file)
        expected = {key for name, entry in entries.items() for key in _keys(name, entry["grid"])}
        for key in sorted(expected ^ set(self._file.keys())):
            found, wanted = (file, manifest) if key not in expected else (manifest, file)
            raise Refused(f"{file.parent}: {key} is in {found.name} but not in {wanted.name}", "make the folder again")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if entry["grid"] == FLOAT32:
            return self._read(name).astype(np.float32)
        grid: Grid = plugins.find("grids", entry["grid"])
        types = parts.dtypes(grid) | {parts.CODES: np.dtype(np.uint8)}
        stored = {part: self._read(f"{name}.{part}", dtype) for part, dtype in types.items()}
        stored[parts.CODES] = unpack_codes(stored[parts.CODES], grid)
        return check(parts.join(grid, stored), name)

    def _read(self, key: str, dtype: np.dtype[Any] | None = None) -> np.ndarray[Any, Any]:
        if key not in self._file:
            raise Refused(f"tensor {key} is not there", "the folder is incomplete; make it again")
        values = self._file[key]
        if dtype is not None and (values.dtype != dtype or values.ndim != 2):
            raise Refused(
                f"tensor {key} is {values.dtype} {list(values.shape)}, not a matrix of {dtype}",
                "the file is corrupt; make the folder again",
            )
        return values


def _keys(name: str, grid: str) -> list[str]:
    """The arrays of ``model.safetensors`` that hold one logical tensor."""
    if grid == FLOAT32:
        return [name]
    return [f"{name}.{part}" for part in parts.dtypes(plugins.find("grids", grid))]
