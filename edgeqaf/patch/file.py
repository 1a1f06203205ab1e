"""The file of a task patch, ``*.eqpatch``: a safetensors container with a manifest and the differences of each tensor.

    manifest      JSON: format, root before, root after, and of each tensor that changes: grid, shape, digest before,
                  digest after, codes moved, and per part the length in bytes of each run's differences
    <tensor>      those differences (`edgeqaf.patch.coding`), run after run, in each the parts in order

A run is a number of rows whose codes take about 1 MB, so that a patch is put in by runs in bounded memory. A length
of zero says that nothing changed. Rows are in logical order: a patch does not know the formats it is put into.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import __version__, parts, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.console import progress
from edgeqaf.diff import Change, difference
from edgeqaf.digest import FLOAT32, file_sha256, merkle_root, tensor_digest
from edgeqaf.errors import Refused, UsageError
from edgeqaf.patch.coding import Bytes, add, encode
from edgeqaf.qtensor import QTensor
from edgeqaf.staging import staged
from edgeqaf.tensorfile import ALIGNMENT, TensorFile, TensorWriter

Kind = tuple[str, tuple[int, ...]]  # grid, shape
FORMAT, MANIFEST, RUN = 1, "manifest", 2**20
MOST = 2**40  # weights of a tensor
CARRIED = ("codes", "parameters")  # `Change.what` of what a patch holds
AGAIN = "the patch is damaged or no patch; fetch or make it again"


def runs(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """[start, stop) of the rows of each run of a tensor [out, in]; of the elements of a vector."""
    each = max(1, RUN // prod(shape[1:]))
    return [(start, min(start + each, shape[0])) for start in range(0, shape[0], each)]


def changed(q: QTensor, differences: Mapping[str, bytes], *, times: int = 1) -> QTensor:
    """The rows of a run with its differences added; with times=-1, taken away."""
    arrays = {part: array.copy() for part, array in parts.split(q).items()}
    for part, coded in differences.items():
        if coded:
            add(coded, flat(arrays[part]), times=times)
    return parts.join(q.grid, arrays)


@dataclass(frozen=True)
class Made:
    """A patch that was written.

    before, after: roots. size: in bytes.
    entropy: bytes that its differences would take if each tensor's were drawn independently, from their frequencies.
    """

    changes: list[Change]
    before: str
    after: str
    size: int
    entropy: float


def make(before: QModel, after: QModel, target: Path, *, force: bool = False) -> Made:
    """Write the patch that turns ``before`` into ``after``; one pair of tensors is in memory at a time.

    Raises Refused where they differ in more than stored integers on the same grids: in names, shapes, floats.
    """
    outline = {name: kind for name, kind in before.outline().items() if kind[0] != FLOAT32}
    entries = {name: _entry(kind, "0" * 64, "0" * 64, 10**12) for name, kind in outline.items()}
    room = len(_json(_manifest("0" * 64, "0" * 64, entries))) + ALIGNMENT
    most = {name: (2 * sum(_sizes(kind)) + 64,) for name, kind in outline.items()} | {MANIFEST: (room,)}
    changes, entropy, entries = [], 0.0, {}
    old, new = {}, {}
    names = sorted(before.tensors.keys() | after.tensors.keys())
    with (
        staged(target, force=force, needed_bytes=sum(n for (n,) in most.values()) // 8) as part,
        TensorWriter(part, most, {"format": "eqpatch"}, at_most=True) as file,
        progress("patch", len(names)) as advance,
    ):
        for done, name in enumerate(names, 1):
            x, y = before.tensors.get(name), after.tensors.get(name)
            change = difference(name, x, y)
            if x is None or y is None or (change is not None and change.what not in CARRIED):
                raise _beyond(change)
            old[name], new[name] = tensor_digest(name, x), tensor_digest(name, y)
            if change is not None and isinstance(x, QTensor) and isinstance(y, QTensor):
                changes.append(change)
                coded, lengths, bits = _differences(x, y)
                entries[name] = _entry(outline[name], old[name], new[name], change.codes) | {"parts": lengths}
                file.add(name, coded)
                entropy += bits / 8
            advance(done, name)
        roots = merkle_root(old), merkle_root(new)
        file.add(MANIFEST, _padded(_json(_manifest(*roots, entries))))
    return Made(changes, *roots, target.stat().st_size, entropy)


def _beyond(change: Change | None) -> Refused:
    assert change is not None
    return Refused(
        f"{change.name} differs ({change.what}), and a patch cannot carry that: it holds changes of stored integers",
        "make patches between a model and what was tuned from it",
    )


def _differences(x: QTensor, y: QTensor) -> tuple[Bytes, dict[str, list[int]], float]:
    """What turns ``x`` into ``y``, its lengths per part and run, and its entropy in bits."""
    old, new = parts.split(x), parts.split(y)
    streams = {
        part: [encode(flat(old[part][a:b]), flat(new[part][a:b])) for a, b in runs(x.shape)]
        for part in old
    }  # fmt: skip
    whole = b"".join(b"".join(run) for run in zip(*streams.values(), strict=True))
    entropy = sum(_entropy(flat(new[part]) - flat(old[part])) for part in old)
    return _padded(whole), {part: [len(run) for run in found] for part, found in streams.items()}, entropy


def flat(array: NDArray[Any]) -> Bytes:
    """The bytes of an array, row after row."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _entropy(values: Bytes) -> float:
    counts = np.bincount(values, minlength=256)
    share = counts[counts > 0] / values.size
    return float(-(share * np.log2(share)).sum() * values.size)


def _manifest(before: str, after: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "before": before, "after": after, "tensors": entries, "tool": {"edgeqaf": __version__}}


def _entry(kind: Kind, before: str, after: str, number: int) -> dict[str, Any]:
    """A tensor's part of the manifest, ``number`` standing for codes moved, and, at first, for every length."""
    grid, shape = kind
    lengths = {part: [number] * len(runs(shape)) for part in parts.dtypes(plugins.find("grids", grid))}
    return {"grid": grid, "shape": list(shape), "before": before, "after": after, "moved": number, "parts": lengths}


def _sizes(kind: Kind) -> Iterator[int]:
    """Bytes of each part."""
    grid, (out, inputs) = plugins.find("grids", kind[0]), kind[1]
    for part, shape in parts.shapes(grid, (out, inputs)).items():
        yield prod(shape) * parts.dtypes(grid)[part].itemsize


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _padded(data: bytes) -> Bytes:
    """With bytes of spaces (JSON) or zeros (differences) up to the container's alignment."""
    filler = b" " if data.startswith(b"{") else b"\0"
    return np.frombuffer(data + filler * (-len(data) % ALIGNMENT), np.uint8)


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
        lengths = self.tensors[name]["parts"]
        place = sum(n for each in lengths.values() for n in each[:run])
        found = {}
        for part, each in lengths.items():
            found[part] = self._file.part(name, place, place + each[run])
            place += each[run]
        return found

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
