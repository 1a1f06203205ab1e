"""A GGUF file in and out, and a merge between: how fast, in how much memory; on a Llama of random codes.

The shape is a real one's. What is merged is a run of the method ``codes`` in which 5 % of the codes moved by one.

    python benchmarks/gguf_files.py --shape 1b --grid q4_0
    python benchmarks/gguf_files.py --shape 8b --grid q4_k     # 4.5 GB of file, 13 GB of disk in all, minutes

Each step is a process of its own, whose peak memory is its own. Rates are of the GGUF file's bytes, read from and
written to the page cache where it is large enough. ``limit`` is three times the largest tensor as the step holds it
(its codes a byte each) plus 400 MB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import FORMAT, MANIFEST, QModel
from edgeqaf.digest import Tensor, tensor_digest
from edgeqaf.grid import Grid, Zero
from edgeqaf.imported import import_base
from edgeqaf.jsonfile import write_json
from edgeqaf.qtensor import QTensor, Supers
from edgeqaf.source import is_linear
from edgeqaf.tensorfile import TensorWriter
from exporters.gguf import exporter, families

SHAPES = {  # layers, hidden, inner, heads, kv heads, vocabulary
    "125m": (12, 768, 3072, 12, 4, 32000),
    "1b": (16, 2048, 8192, 32, 8, 128256),
    "2b": (26, 2048, 8192, 32, 8, 128256),  # 1.04 GB on q4_0
    "8b": (32, 4096, 14336, 32, 8, 128256),
}


class Random(Mapping[str, Tensor]):
    """Tensors of a config, made when they are asked for: linears and embedding of random codes, norms of ones."""

    def __init__(self, config: Mapping[str, object], grid: Grid) -> None:
        family = families.of_config(config)
        self._grid = grid
        self._shapes = {place.logical: place.shape for place in family.places(family.dimensions(config), tied=True)}

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {n: (self._grid.name if len(s) == 2 else "float32", s) for n, s in self._shapes.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> Tensor:
        shape, grid = self._shapes[name], self._grid
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        rng = np.random.default_rng(len(name))
        codes = rng.integers(grid.lo, grid.hi, shape, np.int8, endpoint=True)
        each = (shape[0], shape[1] // grid.block)
        if grid.levels is not None:
            spans = [span for span in (grid.levels.scale, grid.levels.zero) if span]
            d = np.full((shape[0], shape[1] // grid.unit), 2.0**-14, np.float32)
            parts = [p for low, high in spans for p in (d, rng.integers(low, high, each, np.int8, endpoint=True))]
            supers = Supers(*parts)
            return QTensor(grid, codes, supers.scale, supers.zero, supers)
        scale = np.full(each, 2.0**-8, np.float32)
        return QTensor(grid, codes, scale, None if grid.zero is Zero.NONE else -scale)


def make(folder: Path, shape: str, grid: str) -> None:
    layers, hidden, inner, heads, kv_heads, vocabulary = SHAPES[shape]
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    alphabet = {text: i for i, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    exporter.export(QModel(config, Random(config, plugins.find("grids", grid)), folder), folder / "model.gguf")


def tune(base: Path, run: Path) -> None:
    """A run folder as `edgeqaf.finetune` leaves one, as far as merge reads it; one tensor in memory at a time."""
    from edgeqaf.packed import lanes, packed
    from edgeqaf.resume import ADAPTER
    from edgeqaf.run import SETTINGS

    model = checkpoint.load(base)
    layers = sorted(n for n in model.outline() if is_linear(model.config["model_type"], n))
    shapes = {n.removesuffix("weight") + "adapter.": model.outline()[n][1] for n in layers}
    stored: dict[str, tuple[int, ...]] = {}
    for path, (out, inputs) in shapes.items():
        each = lanes(plugins.find("grids", model.outline()[f"{path.removesuffix('adapter.')}weight"][0]))
        stored |= {f"{path}codes": (out, inputs // each), f"{path}remainder": (out, inputs), f"{path}updates": ()}
        stored |= {f"{path}v_row": (out,), f"{path}v_col": (inputs,)}
    run.mkdir()
    folded: dict[str, str] = {}
    with TensorWriter(run / ADAPTER, stored, {"format": "pt"}) as file:
        for name, path in zip(layers, shapes, strict=True):
            q = model.tensors[name]
            assert isinstance(q, QTensor)
            drawn = np.random.default_rng(len(folded)).integers(0, 40, q.shape, np.int8)
            step = (drawn == 0).view(np.int8) - (drawn == 1).view(np.int8)
            moved = q.replace(codes=(q.codes + step).clip(q.grid.lo, q.grid.hi))
            folded[name] = tensor_digest(name, moved)
            file.add(f"{path}codes", packed(moved).codes.numpy())
            file.add(f"{path}remainder", np.zeros(q.shape, np.int8))
            file.add(f"{path}v_row", np.zeros(q.shape[0], np.float32))
            file.add(f"{path}v_col", np.zeros(q.shape[1], np.float32))
            file.add(f"{path}updates", np.array(1))
    write_json(run / SETTINGS, {"base": f"../{base.name}"})
    manifest = {"format": FORMAT, "kind": "run", "parent": model.root, "method": "codes", "options": {}, "seed": 0}
    write_json(run / MANIFEST, {**manifest, "folded": folded})


def step(what: str, folder: Path, shape: str, grid: str) -> dict[str, float]:
    """One step in this process; seconds and peak memory in MB."""
    started = time.perf_counter()
    if what == "make":
        make(folder, shape, grid)
    elif what == "import":
        import_base(folder / "model.gguf", folder / "base")
    elif what == "tune":
        tune(folder / "base", folder / "run")
    elif what == "merge":
        from edgeqaf.merge import merge

        merge(folder / "run", folder / "merged")
    else:
        exporter.export(checkpoint.load(folder / "base"), folder / "again.gguf")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--grid", default="q4_0")
    parser.add_argument("--dir", type=Path, help="where the files lie for the time")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(step(arguments.step, arguments.dir, arguments.shape, arguments.grid)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.dir) as place:
        folder = Path(place)
        line = [sys.executable, __file__, "--shape", arguments.shape, "--grid", arguments.grid, "--dir", place]
        _, hidden, inner, _, _, vocabulary = SHAPES[arguments.shape]
        limit = 3 * max(vocabulary * hidden, inner * hidden) / 2**20 + 400
        for what in ("make", "import", "tune", "merge", "export"):
            ran = subprocess.run([*line, "--step", what], check=True, capture_output=True, text=True)
            done = json.loads(ran.stdout.splitlines()[-1])
            size, seconds = (folder / "model.gguf").stat().st_size / 1e6, done["seconds"]
            speed = f"{size:7.0f} MB  {seconds:6.1f} s  {size / seconds:5.0f} MB/s"
            print(f"{what:7} {speed}  peak {done['mb']:5.0f} MB, limit {limit:.0f}")
        same = (folder / "model.gguf").read_bytes() == (folder / "again.gguf").read_bytes() if size < 2e3 else None
        print(f"byte-identical: {same}")


if __name__ == "__main__":
    main()
