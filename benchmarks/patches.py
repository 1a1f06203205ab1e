"""A task patch put into a large GGUF file, and taken out: how fast, in how much memory, how small.

    python benchmarks/patches.py --shape 2b --moved 0.05     # 1.04 GB of Q4_0, 3.3 GB of disk in all

The model is a Llama of random codes (`synthetic.py`); the task moves a share of the codes of its decoder by one step,
each with equal probability: noise, which no compressor brings below its entropy. Each step is a process of its own,
whose peak memory is its own.
"""

import argparse
import filecmp
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import steps
from synthetic import SHAPES, make

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.diff import opened
from edgeqaf.digest import FLOAT32, Tensor
from edgeqaf.grid import Grid
from edgeqaf.parts import CODES
from edgeqaf.patch.file import Patch
from edgeqaf.patch.making import make as make_patch
from edgeqaf.patch.target import Target
from edgeqaf.runs import Rows, Run, rows_of, whole
from exporters.gguf import exporter


class Moved(Mapping[str, Tensor]):
    """The tensors of a model with a share of the codes of its decoder a step away, made when they are asked for."""

    def __init__(self, model: QModel, share: float) -> None:
        self._model, self._share = model, share

    def outline(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        return self._model.outline()

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.tensors)

    def __len__(self) -> int:
        return len(self._model.tensors)

    def __getitem__(self, name: str) -> Tensor:
        grid, shape = self.outline()[name]
        if grid == FLOAT32:
            return self._model.tensors[name]
        return whole(self.rows(name), plugins.find("grids", grid), (shape[0], shape[1]))

    def rows(self, name: str) -> Rows:
        rows, grid = rows_of(self._model.tensors, name), self.outline()[name][0]
        tuned = ".layers." in name and grid != FLOAT32
        return partial(self._some, name, rows, plugins.find("grids", grid)) if tuned else rows

    def _some(self, name: str, rows: Rows, grid: Grid, start: int, stop: int) -> Run:
        run = rows(start, stop)
        drawn = np.random.default_rng([len(name), start]).random(run[CODES].shape, np.float32)
        step = (drawn < self._share / 2).astype(np.int8) - (drawn >= 1 - self._share / 2)
        return run | {CODES: np.clip(run[CODES] + step, grid.lo, grid.hi)}


def step(what: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One step, in this process; what the patch takes."""
    model, patch, more, started = folder / "model.gguf", folder / "task.eqpatch", {}, time.perf_counter()
    if what == "start":  # what every step has: the imports
        pass
    elif what == "make":
        make(folder, arguments.shape, arguments.grid)
        shutil.copy(model, folder / "shipped.gguf")
    elif what == "tune":
        config = json.loads((folder / "config.json").read_text())
        exporter.export(QModel(config, Moved(opened(model), arguments.moved), folder), folder / "tuned.gguf")
    elif what == "diff":
        made = make_patch(opened(model), opened(folder / "tuned.gguf"), patch)
        more = {"bytes": made.size, "entropy": made.entropy, "codes": sum(change.codes for change in made.changes)}
    else:
        with Target(model, Patch(patch), writable=what != "verify") as target:
            found = target.check().name
            more = {"check": time.perf_counter() - started}
            assert found == {"apply": "not applied", "verify": "applied", "revert": "applied"}[what], found
            if what != "verify":
                target.move(put=what == "apply")
    return more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--grid", default="q4_0")
    parser.add_argument("--moved", type=float, default=0.05, help="share of codes that the task moves")
    parser.add_argument("--dir", type=Path, help="where the files lie for the time")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        steps.measure(lambda: step(arguments.step, arguments.dir, arguments))
        return
    with tempfile.TemporaryDirectory(dir=arguments.dir) as place:
        folder = Path(place)
        for what in ("start", "make", "tune", "diff", "apply", "verify", "revert"):
            done = steps.run([sys.executable, __file__, *sys.argv[1:], "--dir", place, "--step", what])
            size = (folder / "model.gguf").stat().st_size / 1e6 if what != "start" else 0.0
            print(f"{what:7} {size:6.0f} MB  {done['seconds']:6.1f} s  peak {done['mb']:5.0f} MB", end="")
            print(f"  reading and hashing first: {done['check']:.1f} s" if what in ("apply", "revert") else "")
            if what == "diff":
                bits = 8 * done["bytes"] / done["codes"]
                print(f"        patch {done['bytes'] / 1e6:.1f} MB, entropy {done['entropy'] / 1e6:.1f} MB,", end="")
                print(f" ratio {done['bytes'] / done['entropy']:.3f}, {bits:.2f} bits a moved code")
            if what in ("apply", "revert"):
                other = folder / ("tuned.gguf" if what == "apply" else "shipped.gguf")
                print(f"        byte-identical: {filecmp.cmp(folder / 'model.gguf', other, shallow=False)}")


if __name__ == "__main__":
    main()
