"""Two models that differ in what a task moves, as GGUF files, and the patch between them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import GGML, write

from edgeqaf.checkpoint import QModel
from edgeqaf.diff import opened
from edgeqaf.imported import import_base
from edgeqaf.patch import making
from edgeqaf.patch.file import Patch
from edgeqaf.qtensor import QTensor
from exporters.gguf import exporter


@dataclass(frozen=True)
class Task:
    """before, after: GGUF files of the model without and with the task; patch: what turns one into the other."""

    before: Path
    after: Path
    patch: Path

    def opened(self) -> Patch:
        return Patch(self.patch)


def moved(q: QTensor, seed: int, share: float = 0.1) -> QTensor:
    """Some codes a step away, some scales another, as methods move them."""
    rng = np.random.default_rng(seed)
    step = np.where(rng.random(q.shape) < share, rng.choice([-1, 1, 2], q.shape), 0)
    codes = np.clip(q.codes.astype(np.int16) + step, q.grid.lo, q.grid.hi).astype(np.int8)
    if q.supers is not None:
        return replace(q, codes=codes)
    scale = np.where(rng.random(q.scale.shape) < share, q.scale * np.float32(2), q.scale)
    return replace(q, codes=codes, scale=scale)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Task]:
    """A task on a file of matrices of these types; seed: of what moves."""

    def made(kinds: list[GGML], seed: int = 0, **options: object) -> Task:
        before, after, patch = (tmp_path / f"{seed}.{name}" for name in ("before.gguf", "after.gguf", "task.eqpatch"))
        write(before, kinds, **options)
        base = import_base(before, tmp_path / f"base{seed}")
        names = sorted(n for n, (grid, _) in base.outline().items() if grid != "float32")[1:]  # one stays as it is
        tensors = {n: base.tensors[n] for n in base.tensors}
        tensors |= {n: moved(base.tensors[n], seed + i) for i, n in enumerate(names)}
        exporter.export(QModel(base.config, tensors, base.folder), after)
        making.make(opened(before), opened(after), patch)
        return Task(before, after, patch)

    return made
