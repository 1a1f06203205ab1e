"""Making a patch of two models: by runs of rows, as many pairs of tensors at a time as there are processors."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf import __version__, parts, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.console import progress
from edgeqaf.diff import Change, Kind, change_of, moved, parts_of, unlike
from edgeqaf.digest import FLOAT32, TensorDigest, merkle_root
from edgeqaf.errors import Refused
from edgeqaf.patch.coding import Bytes, encode
from edgeqaf.patch.file import FORMAT, MANIFEST, flat, runs
from edgeqaf.runs import Rows, rows_of, threads
from edgeqaf.staging import staged
from edgeqaf.tensorfile import ALIGNMENT, TensorWriter

CARRIED = ("codes", "parameters")  # `Change.what` of what a patch holds


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
    """Write the patch that turns ``before`` into ``after``.

    Raises Refused where they differ in more than stored integers on the same grids: in names, shapes, floats.
    """
    kinds = _common(before, after)
    outline = {name: kind for name, kind in kinds.items() if kind[0] != FLOAT32}
    entries = {name: _entry(kind, "0" * 64, "0" * 64, 10**12) for name, kind in outline.items()}
    room = len(_json(_manifest("0" * 64, "0" * 64, entries))) + ALIGNMENT
    most = {name: (2 * sum(_sizes(kind)) + 64,) for name, kind in outline.items()} | {MANIFEST: (room,)}
    pairs: list[_Pair] = []

    def compared(name: str) -> _Pair:
        return _compared(name, kinds[name], rows_of(before.tensors, name), rows_of(after.tensors, name))

    with (
        staged(target, force=force, needed_bytes=sum(n for (n,) in most.values()) // 8) as part,
        TensorWriter(part, most, {"format": "eqpatch"}, at_most=True) as file,
        ThreadPoolExecutor(threads()) as pool,
        progress("patch", len(kinds)) as advance,
    ):
        entries = {}
        for done, (name, pair) in enumerate(zip(kinds, pool.map(compared, kinds), strict=True), 1):
            if pair.change is not None:
                if pair.change.what not in CARRIED:
                    raise _beyond(pair.change)
                entries[name] = _entry(kinds[name], *pair.digests, pair.change.codes) | {"parts": pair.lengths}
                file.add(name, _padded(b"".join(pair.coded)))
                pair.coded.clear()
            pairs.append(pair)
            advance(done, name)
        old, new = (merkle_root({n: p.digests[k] for n, p in zip(kinds, pairs, strict=True)}) for k in (0, 1))
        file.add(MANIFEST, _padded(_json(_manifest(old, new, entries))))
    changes = [pair.change for pair in pairs if pair.change]
    return Made(changes, old, new, target.stat().st_size, sum(pair.entropy for pair in pairs))


@dataclass(frozen=True)
class _Pair:
    """Two tensors compared. coded, lengths: differences of every run, per part their bytes; entropy: in bytes."""

    change: Change | None
    digests: tuple[str, str]
    coded: list[bytes]
    lengths: dict[str, list[int]]
    entropy: float


def _compared(name: str, kind: Kind, old: Rows, new: Rows) -> _Pair:
    grid = None if kind[0] == FLOAT32 else plugins.find("grids", kind[0])
    digests = TensorDigest(name, kind[1], grid), TensorDigest(name, kind[1], grid)
    counts = {part: np.zeros(256, np.int64) for part in (parts.dtypes(grid) if grid else ())}
    lengths: dict[str, list[int]] = {part: [] for part in counts}
    coded, codes, others = [], 0, 0
    for start, stop in runs(kind[1]):
        pair = old(start, stop), new(start, stop)
        x, y = (parts_of(rows) for rows in pair)
        more = moved(x, y)
        codes, others = codes + more[0], others + more[1]
        for digest, rows, split in zip(digests, pair, (x, y), strict=True):
            digest.update(split if grid else rows)
        for part in counts:
            coded.append(encode(flat(x[part]), flat(y[part]), counts[part]))
            lengths[part].append(len(coded[-1]))
    change = change_of(name, kind, codes, others)
    entropy = sum(_entropy(each) for each in counts.values()) / 8
    return _Pair(change, (digests[0].hex(), digests[1].hex()), coded, lengths, entropy)


def _common(before: QModel, after: QModel) -> dict[str, Kind]:
    """Grid and shape of every tensor by name, sorted; Refused unless they are the same in both."""
    old, new = before.outline(), after.outline()
    names = sorted(old.keys() | new.keys())
    for name in names:
        change = unlike(name, old.get(name), new.get(name))
        if change is not None:
            raise _beyond(change)
    return {name: old[name] for name in names}


def _beyond(change: Change) -> Refused:
    return Refused(
        f"{change.name} differs ({change.what}), and a patch cannot carry that: it holds changes of stored integers",
        "make patches between a model and what was tuned from it",
    )


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits that numbers of such frequencies take."""
    total, counts = counts.sum(), counts[counts > 0]
    return float(-(counts * np.log2(counts / total)).sum())


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
