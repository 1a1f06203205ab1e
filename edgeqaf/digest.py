"""Digests of logical tensors: the same number whatever file format holds them.

A digest covers a tensor's name, shape and stored integers, not the bytes of a container. GGUF
swaps nibbles and permutes rows, ONNX transposes, safetensors packs pairs; after `read_back` has
undone the layout all three give the same digests and therefore the same Merkle root, which proves
a lossless conversion without running anything.
"""

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.grid import Grid
from edgeqaf.parts import CODES, Parts, split
from edgeqaf.qtensor import QTensor

FLOAT32 = "float32"  # what stands for the grid of a float tensor
AHEAD = 4  # runs that may wait to be hashed on another thread
Floats = NDArray[np.float32]
Tensor = QTensor | Floats


def tensor_digest(name: str, tensor: Tensor) -> str:
    """SHA-256, in hex, of one logical tensor.

    A QTensor contributes its grid and its parts in order (`edgeqaf.parts`: codes row-major as int8, scale bits
    as little-endian float16, and so on); a float tensor its float32 bits. Widening a float tensor from bf16
    or f16 is exact, so the type a file stored it in does not matter.
    """
    digest = TensorDigest(name, tensor.shape, tensor.grid if isinstance(tensor, QTensor) else None)
    digest.update(tensor)
    return digest.hex()


class TensorDigest:
    """`tensor_digest` of a tensor that comes in runs of rows; grid: None for a float tensor.

    beside: an executor of one thread, which hashes while the caller makes the next runs; they must stay as they are.
    """

    def __init__(self, name: str, shape: tuple[int, ...], grid: Grid | None, beside: Executor | None = None) -> None:
        header: dict[str, object] = {"name": name, "shape": [int(n) for n in shape], "grid": FLOAT32}
        if grid is not None:
            header |= {"grid": grid.name, "block": grid.block}
        self._first = hashlib.sha256(b"edgeqaf tensor 1\0")
        self._first.update(json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\0")
        self._others: dict[str, list[NDArray[Any]]] = {}
        self._beside, self._waiting = beside, deque[Future[None]]()

    def update(self, rows: Tensor | Parts) -> None:
        """Take the next rows, or their parts. Codes are hashed at once; the others, which follow them all, are kept."""
        if isinstance(rows, np.ndarray):
            self._hash(rows.astype("<f4", copy=False))
            return
        arrays = split(rows) if isinstance(rows, QTensor) else rows
        self._hash(arrays[CODES])
        for part, array in arrays.items():
            if part != CODES:
                self._others.setdefault(part, []).append(array)

    def hex(self) -> str:
        """The digest, once every row was given."""
        while self._waiting:
            self._waiting.popleft().result()
        for arrays in self._others.values():
            for array in arrays:
                self._first.update(np.ascontiguousarray(array).data)
        self._others = {}
        return self._first.hexdigest()

    def _hash(self, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).data
        if self._beside is None:
            self._first.update(data)
            return
        if len(self._waiting) == AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._beside.submit(self._first.update, data))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; empty for a file that is not there."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def merkle_root(digests: Mapping[str, str]) -> str:
    """The root, in hex, of the Merkle tree over ``digests`` sorted by tensor name.

    Leaves and inner nodes are hashed under different tags; an odd node is promoted unchanged.
    """
    level = [hashlib.sha256(b"\0" + bytes.fromhex(digests[name])).digest() for name in sorted(digests)]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + ([level[-1]] if len(level) % 2 else [])
    return (level[0] if level else hashlib.sha256(b"\2").digest()).hex()
