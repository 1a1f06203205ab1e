"""A quantized model on disk: the Hugging Face folder layout, with packed codes and a manifest.

    config.json, tokenizer files   copied byte for byte from the model it came from, but for one line
                                   of config.json that names our quantizer (`edgeqaf.companions`)
    model.safetensors              for each quantized tensor  NAME.codes  [out, in * width / 8] uint8
                                                              NAME.scale, NAME.zero and so on (`edgeqaf.parts`)
                                   for each float tensor      NAME        bfloat16 or float16 where exact, else float32
    edgeqaf.json                   format version, kind, grid and digest per tensor, Merkle root,
                                   root of the parent, tool versions, the options of the command

How codes share bytes, and their width: `edgeqaf.packing`. There are no timestamps and no
paths inside: the same input gives the same bytes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from edgeqaf import __version__, plugins
from edgeqaf.companions import CONFIG, QUANTIZATION, companions_digest, copy_companions, name_quantizer
from edgeqaf.console import progress
from edgeqaf.digest import FLOAT32, Tensor, merkle_root, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ExportOptions
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.qtensor import QTensor
from edgeqaf.runs import Outlined, digests, kind_of, rows_of
from edgeqaf.staging import staged
from edgeqaf.weightsfile import WeightsFile, stored_bytes, write_all

FORMAT = 1
MANIFEST = "edgeqaf.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class QModel:
    """A model whose linear weights are QTensors and whose other tensors are float32 arrays.

    config:   the Hugging Face ``config.json``, as its source has it.
    tensors:  logical name -> tensor; loaded one at a time when the model is on disk.
    folder:   where the companion files (config, tokenizer) are.
    manifest: the parsed ``edgeqaf.json``; empty for a model not yet saved.
    asked:    what is asked of its export.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    folder: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)
    asked: ExportOptions = field(default_factory=ExportOptions)

    @property
    def root(self) -> str:
        return str(self.manifest["root"])

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (grid, or "float32", and shape) of each tensor; where a file or manifest tells, none is read."""
        stated = self.manifest.get("tensors")
        if stated is not None:
            return {name: (entry["grid"], tuple(entry["shape"])) for name, entry in stated.items()}
        if isinstance(self.tensors, Outlined):
            return dict(self.tensors.outline())
        return {name: kind_of(tensor) for name, tensor in self.tensors.items()}

    def weights(self) -> int:
        """How many weights are quantized."""
        return sum(prod(shape) for grid, shape in self.outline().values() if grid != FLOAT32)

    def quantized(self) -> Iterator[tuple[str, QTensor]]:
        """The quantized tensors in sorted order of their names."""
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            if isinstance(tensor, QTensor):
                yield name, tensor

    def digests(self) -> dict[str, str]:
        """The digest of every tensor by name."""
        return dict(digests(partial(rows_of, self.tensors), self.outline()))


def save(
    model: QModel,
    target: Path,
    *,
    kind: str,
    parent: str | None,
    options: Mapping[str, Any],
    extra: Mapping[str, Any] | Callable[[Mapping[str, Tensor]], Mapping[str, Any]] | None = None,
    force: bool = False,
    title: str = "write",
) -> QModel:
    """Write ``model`` as the folder ``target``, re-read it, and return it as loaded from there.

    kind is "base" or "merged"; ``extra`` adds top-level entries to the manifest; where they are not known before
    everything is written, it is called with the tensors as they were. ``title`` is the progress bar's. Some runs are
    in memory at a time, or a tensor that cannot be had by rows.
    """
    outline = model.outline()
    total, done = stored_bytes(outline), 0
    with staged(target, force=force, needed_bytes=total + 2**20) as part:
        part.mkdir()
        copy_companions(model.folder, part)
        if (part / CONFIG).is_file():
            name_quantizer(part)
        entries: dict[str, dict[str, Any]] = {}
        with progress(title, total, "B") as advance:
            for name, digest in write_all(part / WEIGHTS, model.tensors, outline):
                grid, shape = outline[name]
                entries[name] = {"grid": grid, "shape": [int(n) for n in shape], "digest": digest}
                done += stored_bytes({name: (grid, shape)})
                advance(done, name)
        if callable(extra):
            extra = extra(WeightsFile(part / WEIGHTS, part / MANIFEST, entries))
        manifest = {
            "format": FORMAT, "kind": kind, "root": merkle_root({n: e["digest"] for n, e in entries.items()}),
            "parent": parent, "tensors": entries, "tool": {"edgeqaf": __version__}, "options": dict(options),
            **(extra or {}), "companions": companions_digest(part),
        }  # fmt: skip
        write_json(part / MANIFEST, manifest)
        verify(load(part))
    return load(target)


def load(folder: Path) -> QModel:
    """Open the model folder ``folder``; tensors are read, and checked, as they are asked for."""
    manifest = read_manifest(folder)
    if manifest.get("kind") not in ("base", "merged"):
        raise Refused(
            f"{folder} is a {manifest.get('kind')} folder, not a model", "pass a folder made by quantize or merge"
        )
    config = read_json(folder / CONFIG)
    config.pop(QUANTIZATION, None)
    return QModel(
        config, WeightsFile(folder / WEIGHTS, folder / MANIFEST, _entries(folder, manifest)), folder, manifest
    )


def _entries(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tensors that a manifest describes, refused unless each has a known grid and a digest."""
    entries, grids = manifest.get("tensors"), ["float32", *plugins.names("grids")]
    if not isinstance(entries, dict) or not isinstance(manifest.get("root"), str):
        raise Refused(f"{folder / MANIFEST} has no tensors or no root", "the file is corrupt; make the folder again")
    for name, entry in entries.items():
        fields = entry if isinstance(entry, dict) else {}
        if fields.get("grid") not in grids or not isinstance(fields.get("digest"), str) or not _shape(fields):
            raise Refused(
                f"{folder / MANIFEST}: {name} has no digest, no shape, or a grid not among {', '.join(grids)}",
                "the file is corrupt, or of a newer version; make the folder again",
            )
    return entries


def _shape(entry: Mapping[str, Any]) -> bool:
    """Whether an entry has the shape of a tensor, and of a matrix where it is on a grid."""
    shape = entry.get("shape")
    whole = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    return whole and (entry["grid"] == FLOAT32 or len(shape or ()) == 2)


def verify(model: QModel) -> None:
    """Refuse a model whose tensors, config or tokenizer files are not the ones its manifest names."""
    _require_companions(model)
    found = digests(partial(rows_of, model.tensors), model.outline(), "check")
    _require_root(model, {name: _require_digest(model, name, digest) for name, digest in found})


def verified(model: QModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by name, each once its digest was checked; raises what `verify` raises, as soon as it is found."""
    _require_companions(model)
    found = {}
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        found[name] = _require_digest(model, name, tensor_digest(name, tensor))
        yield name, tensor
    _require_root(model, found)


def _require_companions(model: QModel) -> None:
    companions = companions_digest(model.folder)
    recorded = model.manifest.get("companions", {})
    changed = sorted(name for name in companions.keys() | recorded if companions.get(name) != recorded.get(name))
    if changed:
        raise Refused(
            f"{model.folder / changed[0]} is not the file that {MANIFEST} names",
            "it was edited or damaged; restore it, or make the folder again",
        )


def _require_digest(model: QModel, name: str, digest: str) -> str:
    if digest != model.manifest["tensors"][name]["digest"]:
        raise Refused(
            f"{model.folder}: {name} does not match its digest in {MANIFEST}",
            "the file was damaged or edited; make the folder again",
        )
    return digest


def _require_root(model: QModel, found: Mapping[str, str]) -> None:
    if merkle_root(found) != model.root:
        raise Refused(
            f"{model.folder}: the Merkle root in {MANIFEST} is not that of its tensors", "make the folder again"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The ``edgeqaf.json`` of any folder edgeqaf wrote."""
    if not (folder / MANIFEST).is_file():
        raise Refused(
            f"{folder} has no {MANIFEST}", "pass a folder that edgeqaf wrote (quantize, finetune, merge, export)"
        )
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise Refused(
            f"{folder / MANIFEST} is format {manifest.get('format')!r}; this version reads {FORMAT}",
            "use the edgeqaf version that wrote it",
        )
    return manifest
