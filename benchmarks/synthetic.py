"""A Llama of random codes in the shape of a real one, for benchmarks: as a GGUF file, as a run, and in float16."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import FORMAT, MANIFEST, QModel
from edgeqaf.digest import Tensor, tensor_digest
from edgeqaf.grid import Grid, Zero
from edgeqaf.jsonfile import write_json
from edgeqaf.parts import join
from edgeqaf.qtensor import QTensor, Supers, decode
from edgeqaf.runs import cuts
from edgeqaf.shards import WHOLE
from edgeqaf.source import is_linear
from edgeqaf.tensorfile import TensorWriter
from exporters.gguf import exporter, families
from exporters.gguf.artifact import StoredTensors
from exporters.gguf.container import describe_tensors, padded, plain_header
from exporters.gguf.layouts import F16, F32

SHAPES = {  # layers, hidden, inner, heads, kv heads, vocabulary
    "125m": (12, 768, 3072, 12, 4, 32000),
    "1b": (16, 2048, 8192, 32, 8, 128256),
    "2b": (26, 2048, 8192, 32, 8, 128256),  # 1.04 GB on q4_0
    "deep": (32, 64, 96, 4, 2, 512),  # as many layers, next to no weights
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
        scale = np.float32(2.0**-18) * rng.integers(1024, 2048, each, np.int16).astype(np.float32)  # float16's 11 bits
        return QTensor(grid, codes, scale, None if grid.zero is Zero.NONE else -scale)


def make(folder: Path, shape: str, grid: str) -> None:
    """``folder/model.gguf``, the linears and the embedding on a grid."""
    config = companions(folder, shape)
    exporter.export(QModel(config, Random(config, plugins.find("grids", grid)), folder), folder / "model.gguf")


def floats(folder: Path, shape: str) -> None:
    """A float16 model in the Hugging Face layout: normal weights that keep activations finite, norms of ones."""
    config = companions(folder, shape)
    family = families.of_config(config)
    shapes = {place.logical: place.shape for place in family.places(family.dimensions(config), tied=True)}
    with TensorWriter(folder / WHOLE, shapes, {"format": "pt"}) as file:
        for seed, (name, size) in enumerate(sorted(shapes.items())):
            rng = np.random.default_rng(seed)

            def some(start: int, stop: int, size: tuple[int, ...] = size, rng: np.random.Generator = rng) -> np.ndarray:
                if len(size) == 1:
                    return np.ones(stop - start, np.float16)
                return (rng.standard_normal((stop - start, size[1]), np.float32) / size[1] ** 0.5).astype(np.float16)

            file.add_runs(name, np.dtype(np.float16), (some(*run) for run in cuts(size)))


def companions(folder: Path, shape: str) -> dict[str, Any]:
    """config.json and tokenizer.json; returns the config."""
    layers, hidden, inner, heads, kv_heads, vocabulary = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    alphabet = {text: i for i, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    return config


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


def halves(source: Path, target: Path) -> None:
    """The model of a GGUF file in float16, vectors in float32, as llama.cpp's own converter stores one."""
    stored = StoredTensors(source)
    names = {place.stored: name for name, place in stored.places.items()}
    types = {name: (F16, 2) if len(info.shape) > 1 else (F32, 4) for name, info in stored.files.tensors.items()}
    infos = describe_tensors(
        (name, info.shape, types[name][0], int(np.prod(info.shape)) * types[name][1])
        for name, info in stored.files.tensors.items()
    )
    metadata = {key: value for key, value in stored.files.metadata.items() if not key.startswith("edgeqaf.")}
    with open(target, "xb") as file:
        file.write(plain_header(metadata, infos))
        for info in infos:
            rows, grid = stored.rows(names[info.name]), stored.grid(names[info.name])
            for start, stop in cuts(info.shape):
                run = rows(start, stop)
                file.write((decode(join(grid, run)).astype("<f2") if isinstance(run, dict) else run).data)
            file.write(bytes(padded(info.size) - info.size))
