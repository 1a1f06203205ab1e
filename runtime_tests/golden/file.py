"""A golden file: digests of a model's tensors, and of what each runtime computed from them, by its circumstances.

Digests of outputs are the first 16 hexadecimal digits of a SHA-256: they tell accidents apart, not forgeries. There
are no values, paths or dates in the file, and the same findings give the same bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeqaf.digest import merkle_root
from edgeqaf.errors import Refused, UsageError
from edgeqaf.jsonfile import parse, read_json, write_json
from edgeqaf.staging import staged

FORMAT = 1
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Short = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


@dataclass(frozen=True, order=True)
class Key:
    """The circumstances on which the bits of an entry depend, beside the model.

    runtime, configuration: registry key, and name of the configuration.
    artifact: the format that the runtime read, or "any".
    build:    what the runtime says of its version.
    isa:      by what its kernels are chosen.
    prompts:  digest of what was asked: prompts and activations.
    """

    runtime: str
    configuration: str
    artifact: str
    build: str
    isa: str
    threads: str
    prompts: Short

    def differing(self, other: "Key") -> list[str]:
        """The parts in which two keys differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


@dataclass(frozen=True)
class Entry:
    """What one runtime computed under one key.

    stated: digest of what the artifact holds beside tensors, by file name, or by metadata key in GGUF.
    asked:  token ids of each prompt whose logits were computed; tokens: ids by the runtime's own tokenizer.
    layers: for each number of rows, tensor -> digest of its products with activations.
    logits: digest of the logits after each token, [prompts][tokens].
    """

    key: Key
    stated: dict[str, Short]
    asked: tuple[str, ...]
    tokens: tuple[str, ...]
    layers: dict[str, dict[str, Short]]
    logits: tuple[tuple[Short, ...], ...]


@dataclass(frozen=True)
class Golden:
    """A golden file. tensors: logical name -> `edgeqaf.digest.tensor_digest`."""

    root: Digest
    tensors: dict[str, Digest]
    entries: tuple[Entry, ...] = ()
    format: Literal[1] = 1
    kind: Literal["golden"] = "golden"

    def added(self, entries: Iterable[Entry], path: Path, force: bool) -> "Golden":
        """With more entries; UsageError for one that is there and differs, unless ``force`` lets it be replaced."""
        own = {entry.key: entry for entry in self.entries}
        for entry in entries:
            if not force and own.get(entry.key, entry) != entry:
                raise UsageError(
                    f"{path} has another golden for {entry.key.runtime} {entry.key.configuration}, {entry.key.build}",
                    "see what changed with --check, or pass --force to replace it",
                )
            own[entry.key] = entry
        return Golden(self.root, self.tensors, tuple(own[key] for key in sorted(own)))


def read(path: Path) -> Golden:
    """A golden file; raises Refused for one that is malformed, or contradicts itself."""
    stated = read_json(path)
    if stated.get("kind") != "golden" or stated.get("format") != FORMAT:
        raise Refused(
            f"{path} is {stated.get('kind')!r} of format {stated.get('format')!r}, not 'golden' of format {FORMAT}",
            "name a file made by edgeqaf verify DIST --record FILE, by this version",
        )
    golden = parse(Golden, path)
    root, keys = merkle_root(golden.tensors), [entry.key for entry in golden.entries]
    if root != golden.root:
        raise Refused(f"{path}: root {golden.root[:12]} is not that of its tensors, {root[:12]}", "record it again")
    if len(set(keys)) < len(keys):
        raise Refused(f"{path}: two entries have one key", "record it again")
    for entry in golden.entries:
        if [len(row) for row in entry.logits] != [len(ids.split()) for ids in entry.asked]:
            raise Refused(f"{path}: {entry.key.runtime} has not as many logits as tokens", "record it again")
    return golden


def write(golden: Golden, path: Path) -> None:
    """Write a golden file, all or nothing; one that is there is replaced."""
    with staged(path, force=True) as part:
        write_json(part, asdict(golden))


def to_record(path: Path, root: str, tensors: Mapping[str, str], force: bool) -> Golden:
    """What entries will be added to: the file's content, or none yet.

    Raises UsageError for a file of another model, unless ``force`` lets it be replaced, and for one that is no golden.
    """
    if path.is_symlink():
        raise UsageError(f"{path} is a symbolic link", "name the real output path")
    if path.exists():
        try:
            found = read(path)
        except Refused as refused:
            raise UsageError(f"{path} is there and no golden: {refused}", "choose another file") from None
        if found.root == root:
            return found
        if not force:
            raise UsageError(
                f"{path} is of root {found.root[:12]}, this folder is {root[:12]}",
                "see what changed with --check, or pass --force to replace it",
            )
    return Golden(root, dict(tensors))
