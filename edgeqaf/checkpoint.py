"""A quantized model on disk: the Hugging Face folder layout, with packed codes and a manifest.

    config.json, tokenizer files   copied byte for byte from the model it came from, but for one line
                                   of config.json that names our quantizer (`edgeqaf.companions`)
    model.safetensors              for each quantized tensor  NAME.codes  [out, in * width / 8] uint8
                                                              NAME.scale, NAME.zero and so on (`edgeqaf.parts`)
                                   for each float tensor      NAME        bfloat16 where exact, else float32
    edgeqaf.json                   format version, kind, grid and digest per tensor, Merkle root,
                                   root of the parent, tool versions, the options of the command

How codes share bytes, and their width: `edgeqaf.packing`. There are no timestamps and no
paths inside: the same input gives the same bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgeqaf import __version__, parts, plugins
from edgeqaf.companions import CONFIG, QUANTIZATION, companions_digest, copy_companions, name_quantizer
from edgeqaf.digest import Tensor, merkle_root, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.grid import Grid
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.packing import pack_codes, unpack_codes
from edgeqaf.qtensor import QTensor, check
from edgeqaf.staging import staged

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
    tokenizer_from: a file in the format to be exported, whose tokenizer to take instead of the folder's.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    folder: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_from: Path | None = None

    @property
    def root(self) -> str:
        return str(self.manifest["root"])

    def quantized(self) -> Iterator[tuple[str, QTensor]]:
        """The quantized tensors in sorted order of their names."""
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            if isinstance(tensor, QTensor):
                yield name, tensor

    def digests(self) -> dict[str, str]:
        return {name: tensor_digest(name, self.tensors[name]) for name in sorted(self.tensors)}


def save(
    model: QModel,
    target: Path,
    *,
    kind: str,
    parent: str | None,
    options: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    force: bool = False,
) -> QModel:
    """Write ``model`` as the folder ``target``, re-read it, and return it as loaded from there.

    kind is "base" or "merged"; ``extra`` adds top-level entries to the manifest.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        grid = tensor.grid.name if isinstance(tensor, QTensor) else "float32"
        entries[name] = {"grid": grid, "shape": [int(n) for n in tensor.shape], "digest": tensor_digest(name, tensor)}
        arrays |= _pack(name, tensor)
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "root": merkle_root({n: e["digest"] for n, e in entries.items()}),
        "parent": parent,
        "tensors": entries,
        "tool": {"edgeqaf": __version__},
        "options": dict(options),
        **(extra or {}),
    }
    with staged(target, force=force, needed_bytes=sum(a.nbytes for a in arrays.values()) + 2**20) as part:
        part.mkdir()
        copy_companions(model.folder, part)
        if (part / CONFIG).is_file():
            name_quantizer(part)
        manifest["companions"] = companions_digest(part)
        save_file(arrays, part / WEIGHTS, metadata={"format": "pt"})
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
    return QModel(config, _FolderTensors(folder / WEIGHTS, _entries(folder, manifest)), folder, manifest)


def _entries(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tensors that a manifest describes, refused unless each has a known grid and a digest."""
    entries, grids = manifest.get("tensors"), ["float32", *plugins.names("grids")]
    if not isinstance(entries, dict) or not isinstance(manifest.get("root"), str):
        raise Refused(f"{folder / MANIFEST} has no tensors or no root", "the file is corrupt; make the folder again")
    for name, entry in entries.items():
        fields = entry if isinstance(entry, dict) else {}
        if fields.get("grid") not in grids or not isinstance(fields.get("digest"), str):
            raise Refused(
                f"{folder / MANIFEST}: {name} has no digest, or a grid not among {', '.join(grids)}",
                "the file is corrupt, or of a newer version; make the folder again",
            )
    return entries


def verify(model: QModel) -> None:
    """Refuse a model whose tensors, config or tokenizer files are not the ones its manifest names."""
    for _ in verified(model):
        pass


def verified(model: QModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by name, each once its digest was checked; raises what `verify` raises, as soon as it is found."""
    companions = companions_digest(model.folder)
    recorded = model.manifest.get("companions", {})
    changed = sorted(name for name in companions.keys() | recorded if companions.get(name) != recorded.get(name))
    if changed:
        raise Refused(
            f"{model.folder / changed[0]} is not the file that {MANIFEST} names",
            "it was edited or damaged; restore it, or make the folder again",
        )
    digests = {}
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        digests[name] = tensor_digest(name, tensor)
        if digests[name] != model.manifest["tensors"][name]["digest"]:
            raise Refused(
                f"{model.folder}: {name} does not match its digest in {MANIFEST}",
                "the file was damaged or edited; make the folder again",
            )
        yield name, tensor
    if merkle_root(digests) != model.root:
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


def _pack(name: str, tensor: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    if not isinstance(tensor, QTensor):
        tensor = np.asarray(tensor, order="C")  # save_file writes memory as it lies
        narrow = tensor.astype(ml_dtypes.bfloat16)
        return {name: narrow if (narrow.astype(np.float32).view(np.uint32) == tensor.view(np.uint32)).all() else tensor}
    stored = parts.split(check(tensor, name))
    stored[parts.CODES] = pack_codes(tensor.codes, tensor.grid)
    return {f"{name}.{part}": np.asarray(array, order="C") for part, array in stored.items()}


class _FolderTensors(Mapping[str, Tensor]):
    """Tensors of a model folder, read and checked one at a time."""

    def __init__(self, file: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries = entries
        try:
            self._file = safe_open(file, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise Refused(
                f"{file}: {error}", "the file is missing, truncated or corrupt; make the folder again"
            ) from None
        expected = {key for name, entry in entries.items() for key in _keys(name, entry["grid"])}
        for key in sorted(expected ^ set(self._file.keys())):
            found, wanted = (file.name, MANIFEST) if key not in expected else (MANIFEST, file.name)
            raise Refused(f"{file.parent}: {key} is in {found} but not in {wanted}", "make the folder again")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if entry["grid"] == "float32":
            return self._read(name).astype(np.float32)
        grid: Grid = plugins.find("grids", entry["grid"])
        types = parts.dtypes(grid) | {parts.CODES: np.dtype(np.uint8)}
        stored = {part: self._read(f"{name}.{part}", dtype) for part, dtype in types.items()}
        stored[parts.CODES] = unpack_codes(stored[parts.CODES], grid)
        return check(parts.join(grid, stored), name)

    def _read(self, key: str, dtype: np.dtype[Any] | None = None) -> np.ndarray[Any, Any]:
        try:
            values = np.asarray(self._file.get_tensor(key))
        except SafetensorError as error:
            raise Refused(f"tensor {key}: {error}", "the folder is incomplete; make it again") from None
        if dtype is not None and (values.dtype != dtype or values.ndim != 2):
            raise Refused(
                f"tensor {key} is {values.dtype} {list(values.shape)}, not a matrix of {dtype}",
                "the file is corrupt; make the folder again",
            )
        return values


def _keys(name: str, grid: str) -> list[str]:
    """The arrays of ``model.safetensors`` that hold one logical tensor."""
    if grid == "float32":
        return [name]
    return [f"{name}.{part}" for part in parts.dtypes(plugins.find("grids", grid))]
