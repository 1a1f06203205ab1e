"""How large a model's weights are as an artifact of one format, before or after it is made.

Nothing of the weights is read: shapes come from ``edgeqaf.json``, from the headers of safetensors
files, or, for a model that is not downloaded yet, from its ``config.json`` alone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqaf import plugins
from edgeqaf.checkpoint import MANIFEST, read_manifest
from edgeqaf.errors import Refused, UsageError
from edgeqaf.grid import Grid
from edgeqaf.jsonfile import read_json
from edgeqaf.protocols import Exporter
from edgeqaf.source import EMBEDDING, ENDS, HEAD, FloatModel, is_linear, is_tied
from edgeqaf.splitnames import names_from

Tensor = tuple[str, tuple[int, ...], Grid | None]


@dataclass(frozen=True)
class Dimensions:
    """The numbers of a decoder's ``config.json`` that memory depends on."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> "Dimensions":
        """Read them; raises Refused naming a key that is missing or no positive integer."""

        def count(key: str, default: int | None = None) -> int:
            value = config.get(key, default)
            if value is None and default is not None:
                value = default
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise Refused(f"{where}: {key} is {value!r}, not a positive integer", "pass a decoder model's folder")
            return value

        hidden, heads = count("hidden_size"), count("num_attention_heads")
        return cls(
            layers=count("num_hidden_layers"),
            hidden=hidden,
            ffn=count("intermediate_size"),
            heads=heads,
            kv_heads=count("num_key_value_heads", heads),
            head_size=count("head_dim", hidden // heads),
            vocabulary=count("vocab_size"),
            positions=count("max_position_embeddings"),
            tied=is_tied(config),
        )


@dataclass(frozen=True)
class Sized:
    """A model as an artifact of one format: its dimensions and the bytes of its weights.

    dimensions:       of the Hugging Face ``config.json``.
    lookup_bytes:     of the embedding, where the head has a tensor of its own: looked up, and never multiplied.
    float_head_bytes: of what the head multiplies by; 0 where that is quantized.
    grids:            of its quantized tensors, sorted.
    origin:           what the number of bytes was taken from, in words.
    """

    format: str
    dimensions: Dimensions
    weight_bytes: int
    lookup_bytes: int
    float_head_bytes: int
    grids: tuple[str, ...]
    origin: str

    @property
    def matrix_bytes(self) -> int:
        """The weights without a table that is looked up and a head in float: in essence the quantized matrices."""
        return max(0, self.weight_bytes - self.lookup_bytes - self.float_head_bytes)


def size(folder: Path, format: str, grid: str = "q4_0") -> Sized:
    """Size up a model folder, a dist folder, or a float model (then as if quantized with ``grid``).

    A float folder may hold nothing but its ``config.json``. Raises UsageError for an unknown format,
    Refused for a folder that is none of the three.
    """
    if format not in plugins.names("exporters"):
        raise UsageError(f"unknown format {format!r}", f"known: {', '.join(plugins.names('exporters'))}")
    if not (folder / MANIFEST).is_file():
        return _size_float(folder, format, plugins.find("grids", grid))
    manifest = read_manifest(folder)
    if manifest.get("kind") == "dist":
        return _size_dist(folder, format, manifest)
    if manifest.get("kind") not in ("base", "merged"):
        raise Refused(f"{folder} is a {manifest.get('kind')} folder", "pass a folder made by quantize, merge or export")
    tensors = list(_manifest_tensors(folder, manifest))
    return _sized(format, folder, tensors, _stored_bytes(tensors, format), f"the tensors of {folder}")


def _sized(format: str, folder: Path, tensors: list[Tensor], weight_bytes: int, origin: str) -> Sized:
    """folder: with the config.json."""
    grids = tuple(sorted({grid.name for _, _, grid in tensors if grid}))
    dimensions = _dimensions(folder)
    embedding, head = (_stored_bytes((t for t in tensors if t[0] == name), format) for name in ENDS)
    multiplied = EMBEDDING if dimensions.tied else HEAD
    is_float = any(name == multiplied and grid is None for name, _, grid in tensors)
    lookup, float_head = (0, embedding) if dimensions.tied else (embedding, head)
    return Sized(format, dimensions, weight_bytes, lookup, float_head if is_float else 0, grids, origin)


def _dimensions(folder: Path) -> Dimensions:
    return Dimensions.of(read_json(folder / "config.json"), str(folder / "config.json"))


def _stored_bytes(tensors: Iterable[Tensor], format: str) -> int:
    exporter: Exporter = plugins.find("exporters", format)
    bits = 0.0  # sums of multiples of 1/32 far below 2**53: exact
    for _, shape, grid in tensors:
        if grid is not None and (reason := exporter.refuses(grid)):
            raise Refused(f"{format} cannot carry grid {grid.name}: {reason}", "choose another --format or --grid")
        bits += math.prod(shape) * (32 if grid is None else exporter.stored_as(grid).bits)
    return int(bits / 8)


def _manifest_tensors(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Tensor]:
    entries = manifest.get("tensors")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
            raise Refused(
                f"{folder / MANIFEST}: {name} has no valid shape", "the file is damaged; make the folder again"
            )
        grid = None if entry.get("grid") == "float32" else plugins.find("grids", str(entry.get("grid")))
        yield name, tuple(shape), grid


def _size_float(folder: Path, format: str, grid: Grid) -> Sized:
    if any(folder.glob("*.safetensors")):
        model = FloatModel(folder)
        tensors = [(name, model.shape(name), grid if model.is_linear(name) else None) for name in model]
    else:
        tensors = list(_implied_tensors(folder, grid))
    kept = [(name, shape, g if g and g.fits(shape[-1]) else None) for name, shape, g in tensors]
    origin = f"{folder} as if quantized to {grid.name}"
    return _sized(format, folder, kept, _stored_bytes(kept, format), origin)


def _implied_tensors(folder: Path, grid: Grid) -> Iterator[Tensor]:
    """The tensors that a ``config.json`` stands for, for a model whose weights are not here yet."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise Refused(
            f"{folder} has no weights, and a {config.get('model_type')} model's sizes are not known from its config",
            "fetch the weights first, or pass a llama model's config.json",
        )
    d = _dimensions(folder)
    q, kv = d.heads * d.head_size, d.kv_heads * d.head_size
    layer = {
        "self_attn.q_proj": (q, d.hidden),
        "self_attn.k_proj": (kv, d.hidden),
        "self_attn.v_proj": (kv, d.hidden),
        "self_attn.o_proj": (d.hidden, q),
        "mlp.gate_proj": (d.ffn, d.hidden),
        "mlp.up_proj": (d.ffn, d.hidden),
        "mlp.down_proj": (d.hidden, d.ffn),
        "input_layernorm": (d.hidden,),
        "post_attention_layernorm": (d.hidden,),
    }
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(d.layers) for name, shape in layer.items()}
    shapes |= {EMBEDDING: (d.vocabulary, d.hidden), "model.norm.weight": (d.hidden,)}
    shapes |= {} if d.tied else {HEAD: (d.vocabulary, d.hidden)}
    for name, shape in shapes.items():
        yield name, shape, grid if is_linear("llama", name) else None


def _size_dist(folder: Path, format: str, manifest: Mapping[str, Any]) -> Sized:
    from edgeqaf.dist import REFERENCE

    artifacts = manifest.get("artifacts")
    name = artifacts.get(format) if isinstance(artifacts, dict) else None
    if name is None:
        held = ", ".join(sorted(artifacts)) if isinstance(artifacts, dict) else "none"
        raise UsageError(
            f"{folder} has no {format} artifact; it has {held}", "choose another --format, or export again"
        )
    if not isinstance(name, str) or Path(name).name != name:
        raise Refused(f"{folder / MANIFEST}: artifact {name!r} is not in the folder", "export again")
    path = folder / name
    parts = [folder / part for part in names_from(name)]
    for part in parts:
        if not part.exists():
            raise Refused(f"{folder / MANIFEST}: artifact {part.name!r} is not in the folder", "export again")
    files = [p for part in parts for p in ([part] if part.is_file() else part.rglob("*")) if p.is_file()]
    weight_bytes = sum(p.stat().st_size for p in files)
    origin = f"the size of {path}" if len(parts) == 1 else f"the sizes of {path} and {len(parts) - 1} more"
    return _sized(format, folder / REFERENCE, list(_manifest_tensors(folder, manifest)), weight_bytes, origin)
