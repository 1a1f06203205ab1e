"""How the tensors of a model lie in its ``model.safetensors``; see `edgeqaf.checkpoint` for the folder around it."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from edgeqaf import parts, plugins
from edgeqaf.digest import FLOAT32, Floats, Tensor, TensorDigest
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.packing import WIDTHS, pack_codes, unpack_codes
from edgeqaf.runs import Outline, Rows, ahead, cuts, rows_of, whole
from edgeqaf.tensorfile import NAMES, Array, TensorFile, TensorWriter

AGAIN = "the folder is damaged; make it again"
NARROW = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))  # what a float tensor is stored as if that holds it


def stored(name: str, grid: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(array of ``model.safetensors``, its shape) of all that hold one logical tensor."""
    if grid == FLOAT32:
        yield name, shape
        return
    found: Grid = plugins.find("grids", grid)
    for part, (out, columns) in parts.shapes(found, (shape[0], shape[1])).items():
        yield f"{name}.{part}", (out, columns * WIDTHS[found.bits] // 8 if part == parts.CODES else columns)


def stored_bytes(outline: Outline) -> int:
    """What tensors take in ``model.safetensors``; float ones with 4 bytes a number, which are the most it can be."""
    size = 0
    for name, (grid, shape) in outline.items():
        types = {} if grid == FLOAT32 else parts.dtypes(plugins.find("grids", grid))
        size += sum(
            prod(each) * (types[key.removeprefix(f"{name}.")].itemsize if types else 4)
            for key, each in stored(name, grid, shape)
        )
    return size


def write_all(path: Path, tensors: Mapping[str, Tensor], outline: Outline) -> Iterator[tuple[str, str]]:
    """Write tensors into a new file, sorted, by runs of rows: name and digest of each once it is written.

    Raises GridError for one that is not on its grid. The file is complete when the iterator has ended.
    """
    shapes = {key: shape for name, (grid, shape) in outline.items() for key, shape in stored(name, grid, shape)}
    with TensorWriter(path, shapes, {"format": "pt"}) as file, ThreadPoolExecutor(1) as beside:
        for name, kind in sorted(outline.items()):
            yield name, _write(file, name, kind, rows_of(tensors, name), beside)


def _write(file: TensorWriter, name: str, kind: tuple[str, tuple[int, ...]], rows: Rows, beside: Executor) -> str:
    """Write one tensor and return its digest. kind: grid and shape; beside: what hashes."""
    grid, shape = kind
    if grid == FLOAT32:
        return _write_floats(file, name, shape, rows, beside)
    found: Grid = plugins.find("grids", grid)
    digest = TensorDigest(name, shape, found, beside)
    others: dict[str, list[Array]] = {}

    def packed(start: int, stop: int) -> tuple[parts.Parts, Array]:
        run = rows(start, stop)
        assert isinstance(run, Mapping)
        return parts.check(found, run, name), pack_codes(run[parts.CODES], found)

    def codes() -> Iterator[Array]:
        for arrays, run in ahead(packed, cuts(shape)):
            digest.update(arrays)
            yield run
            for part in arrays.keys() - {parts.CODES}:
                others.setdefault(part, []).append(arrays[part])

    file.add_runs(f"{name}.{parts.CODES}", np.dtype(np.uint8), codes())
    for part in parts.dtypes(found):
        if part in others:
            file.add(f"{name}.{part}", np.concatenate(others[part]))
    return digest.hex()


def _write_floats(file: TensorWriter, name: str, shape: tuple[int, ...], rows: Rows, beside: Executor) -> str:
    """`_write` of a float tensor, which is read twice: what it can be stored as follows from all of it."""

    def runs() -> Iterator[Floats]:
        for start, stop in cuts(shape):
            run = rows(start, stop)
            assert isinstance(run, np.ndarray)
            yield run

    digest, dtype = TensorDigest(name, shape, None, beside), _narrowest(runs())

    def narrowed() -> Iterator[Array]:
        for run in runs():
            digest.update(run)
            yield run.astype(dtype)

    file.add_runs(name, dtype, narrowed())
    return digest.hex()


def _narrowest(runs: Iterable[Floats]) -> np.dtype[Any]:
    """bfloat16 or float16 where that holds every value, else float32."""
    left = list(NARROW)
    with np.errstate(over="ignore"):  # becomes infinite, which is another value
        for run in runs:
            left = [t for t in left if np.array_equal(run.astype(t).astype(np.float32).view("u4"), run.view("u4"))]
            if not left:
                break
    return left[0] if left else np.dtype(np.float32)


class WeightsFile(Mapping[str, Tensor]):
    """Tensors of a model folder, read and checked one at a time, or by rows."""

    def __init__(self, file: Path, manifest: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries = entries
        self._file = TensorFile(file)
        expected = {key for name, entry in entries.items() for key in _keys(name, entry["grid"])}
        for key in sorted(expected ^ set(self._file.keys())):
            found, wanted = (file, manifest) if key not in expected else (manifest, file)
            raise Refused(f"{file.parent}: {key} is in {found.name} but not in {wanted.name}", AGAIN)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Tensor:
        grid_name = self._entries[name]["grid"]
        if grid_name == FLOAT32:
            return self._file[name].astype(np.float32)
        rows, (out, inputs) = self.rows(name), self._shape(name)
        return whole(rows, plugins.find("grids", grid_name), (out, inputs))

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`, from the file's header."""
        return {name: (entry["grid"], self._shape(name)) for name, entry in self._entries.items()}

    def _shape(self, name: str) -> tuple[int, ...]:
        grid_name = self._entries[name]["grid"]
        if grid_name == FLOAT32:
            return self._file.shape(name)
        out, columns = self._file.shape(f"{name}.{parts.CODES}")
        return out, columns * 8 // WIDTHS[plugins.find("grids", grid_name).bits]

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        grid_name = self._entries[name]["grid"]
        if grid_name == FLOAT32:
            return lambda start, stop: self._file.rows(name, start, stop).astype(np.float32)
        grid: Grid = plugins.find("grids", grid_name)
        keys = {part: f"{name}.{part}" for part in parts.dtypes(grid)}
        self._require_parts(keys, grid)

        def read(start: int, stop: int) -> parts.Parts:
            found = {part: self._file.rows(key, start, stop) for part, key in keys.items()}
            found[parts.CODES] = unpack_codes(found[parts.CODES], grid)
            return parts.check(grid, found, name)

        return read

    def _require_parts(self, keys: Mapping[str, str], grid: Grid) -> None:
        """Refuse arrays that are not the parts of one tensor."""
        types = parts.dtypes(grid) | {parts.CODES: np.dtype(np.uint8)}
        for part, key in keys.items():
            dtype, shape = self._file.dtype(key), self._file.shape(key)
            if dtype != NAMES[types[part]] or len(shape) != 2:
                raise Refused(f"tensor {key} is {dtype} {list(shape)}, not a matrix of {types[part]}", AGAIN)
        out, columns = self._file.shape(keys[parts.CODES])
        for part, shape in parts.shapes(grid, (out, columns * 8 // WIDTHS[grid.bits])).items():
            if part != parts.CODES and self._file.shape(keys[part]) != shape:
                found = list(self._file.shape(keys[part]))
                raise Refused(f"tensor {keys[part]} is {found}, its codes need {list(shape)}", AGAIN)


def _keys(name: str, grid: str) -> list[str]:
    """The arrays of ``model.safetensors`` that hold one logical tensor."""
    if grid == FLOAT32:
        return [name]
    return [f"{name}.{part}" for part in parts.dtypes(plugins.find("grids", grid))]
