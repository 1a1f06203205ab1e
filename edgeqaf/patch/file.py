"""The file of a task patch, ``*.eqpatch``: a safetensors container with a manifest and the differences of each tensor.

    manifest      JSON: format, root before, root after, and of each tensor that changes: grid, shape, digest before,
                  digest after, codes moved, and per part the length in bytes of each run's differences
    <tensor>      those differences (`edgeqaf.patch.coding`), run after run, in each the parts in order

A run is a number of rows whose codes take about 1 MB, so that a patch is put in by runs in bounded memory. A length
of zero says that nothing changed. Rows are in logical order: a patch does not know the formats it is put into.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import parts, plugins
from edgeqaf.digest import file_sha256
from edgeqaf.errors import Refused, UsageError
from edgeqaf.parts import Parts
from edgeqaf.patch.coding import Bytes, add
from edgeqaf.runs import cuts
from edgeqaf.tensorfile import ALIGNMENT, TensorFile

FORMAT, MANIFEST, RUN = 1, "manifest", 2**20  # a run of a patch, in weights: part of the format
MOST = 2**40  # weights of a tensor
AGAIN = "the patch is damaged or no patch; fetch or make it again"


def runs(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """[start, stop) of the rows of each run of a tensor [out, in]; of the elements of a vector."""
    return list(cuts(shape, most=RUN))


def changed(rows: Parts, differences: Mapping[str, bytes], *, times: int = 1) -> Parts:
    """The parts of a run with its differences added; with times=-1, taken away. Those without any are the same."""
    arrays = {part: array.copy() if differences[part] else array for part, array in rows.items()}
    for part, coded in differences.items():
        if coded:
            add(coded, flat(arrays[part]), times=times)
    return arrays


def flat(array: NDArray[Any]) -> Bytes:
    """The bytes of an array, row after row."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class Patch:
    """A patch read and checked. before, after: roots; tensors: name -> its entry in the manifest, of those that change.

    Raises Refused for a file that is none, or whose manifest does not describe what is in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TensorFile(path)
        manifest = self._read_manifest()
        self.before, self.after = str(manifest["before"]), str(manifest["after"])
        self.tensors: dict[str, dict[str, Any]] = manifest["tensors"]

    @cached_property
    def digest(self) -> str:
        """Of the file."""
        return file_sha256(self.path)

    def differences(self, name: str, run: int) -> dict[str, bytes]:
        """Part -> differences, of one run of a tensor; empty where there are none."""
        lengths = {part: each[run] for part, each in self.tensors[name]["parts"].items()}
        place = self._places[name][run]
        data = self._file.part(name, place, place + sum(lengths.values()))
        ends = list(accumulate(lengths.values()))
        return {part: data[end - n : end] for (part, n), end in zip(lengths.items(), ends, strict=True)}

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Where the differences of each run of a tensor begin."""
        runs = {name: zip(*entry["parts"].values(), strict=True) for name, entry in self.tensors.items()}
        return {name: list(accumulate(map(sum, each), initial=0)) for name, each in runs.items()}

    def _read_manifest(self) -> dict[str, Any]:
        kinds = {name: self._file.dtype(name) for name in self._file}
        if set(kinds.values()) != {"U8"} or MANIFEST not in kinds:
            raise Refused(f"{self.path} is a safetensors file, but no patch", AGAIN)
        try:
            manifest: dict[str, Any] = json.loads(self._file[MANIFEST].tobytes())
            known = manifest["format"] == FORMAT and {*manifest["tensors"], MANIFEST} == set(kinds)
            fit = known and all(self._fits(name, entry) for name, entry in manifest["tensors"].items())
            fit = fit and all(len(bytes.fromhex(manifest[key])) == 32 for key in ("before", "after"))
        except (ValueError, KeyError, TypeError, AttributeError, UsageError, RecursionError):
            fit, manifest = False, {}
        if not fit:
            raise Refused(f"{self.path}: its manifest is not that of a patch of format {FORMAT}", AGAIN)
        return manifest

    def _fits(self, name: str, entry: Any) -> bool:
        """Whether an entry describes a tensor of a known grid and the differences that are there."""
        (out, inputs), grid, lengths = entry["shape"], plugins.find("grids", entry["grid"]), entry["parts"]
        counted = [out, inputs, entry["moved"], *(n for each in lengths.values() for n in each)]
        if not all(type(n) is int and 0 <= n < 2**48 for n in counted) or not 0 < out * inputs < MOST:
            return False
        expected = len(runs((out, inputs)))
        if list(lengths) != list(parts.dtypes(grid)) or any(len(each) != expected for each in lengths.values()):
            return False
        digests = all(len(bytes.fromhex(entry[key])) == 32 for key in ("before", "after"))
        stated = sum(n for each in lengths.values() for n in each)
        return grid.fits(inputs) and digests and 0 <= self._file.shape(name)[0] - stated < ALIGNMENT
