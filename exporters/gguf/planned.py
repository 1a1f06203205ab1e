"""The files of a model before they are written: headers, and where each tensor will lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Protocol

from exporters.gguf.container import (
    ALIGNMENT,
    TensorInfo,
    Value,
    describe_tensors,
    packed_info,
    padded,
    plain_header,
    seal,
)
from exporters.gguf.split import split_keys

Tensor = tuple[str, tuple[int, ...], int, int]  # name, shape, ggml type, size in bytes
ALIGNED = "general.alignment"


@dataclass(frozen=True)
class Part:
    """One file. header: its bytes; tensors: in order; size: of the file in bytes."""

    header: bytes
    tensors: Sequence[TensorInfo]
    size: int

    def write(self, file: BinaryIO, put: Callable[[BinaryIO, TensorInfo], None]) -> None:
        """Write all of it; ``put`` writes a tensor."""
        file.write(self.header)
        places = pairwise([*(info.offset for info in self.tensors), self.size - len(self.header)])
        for info, (start, end) in zip(self.tensors, places, strict=True):
            put(file, info)
            file.write(bytes(end - start - info.size))


class Planned(Protocol):
    """All files of a model, in order, and how a tensor is written."""

    @property
    def parts(self) -> Sequence[Part]:
        """The files."""

    def put(self, file: BinaryIO, info: TensorInfo) -> None:
        """Write one tensor, by runs of rows."""


def lay_out(metadata: Mapping[str, Value], tensors: Sequence[Tensor], limit: int | None, *, sealed: bool) -> list[Part]:
    """One file, or several where it would be larger than ``limit`` bytes.

    A new one begins where the next tensor would make a file, its header included, larger; so a file is larger only if
    its first tensor makes it so. sealed: whether headers carry their own digests.
    """
    common = {key: value for key, value in metadata.items() if key == ALIGNED}
    alignment = next((value.data for value in common.values() if isinstance(value.data, int)), ALIGNMENT)

    def header(entries: Mapping[str, Value], infos: Sequence[TensorInfo], to: int = alignment) -> bytes:
        return (seal if sealed else plain_header)(entries, infos, to)

    def part(entries: Mapping[str, Value], held: Sequence[Tensor]) -> Part:
        infos = describe_tensors(held, alignment)
        head = header(entries, infos)
        return Part(head, infos, len(head) + sum(padded(info.size, alignment) for info in infos))

    whole = part(metadata, tensors)
    if limit is None or whole.size <= limit:
        return [whole]
    first = {**metadata, **split_keys(0, 0, 0)}
    heads = [len(header(entries, [], 1)) for entries in (first, common | split_keys(0, 0, 0))]
    groups = list(_groups(tensors, limit, heads, alignment))
    if len(groups) == 1:  # one tensor, larger than the limit
        return [whole]
    keys = [split_keys(i, len(groups), len(tensors)) for i in range(len(groups))]
    return [part({**(common if i else metadata), **keys[i]}, group) for i, group in enumerate(groups)]


def _groups(tensors: Sequence[Tensor], limit: int, heads: Sequence[int], alignment: int) -> Iterator[Sequence[Tensor]]:
    """The tensors of each file. heads: bytes that a header takes without tensors, of the first file and of another."""
    start, data, (head, other) = 0, 0, heads
    for i, (name, shape, kind, size) in enumerate(tensors):
        described = len(packed_info(TensorInfo(name, shape, kind, 0, size)))
        data += padded(size, alignment)
        if i > start and padded(head + described, alignment) + data > limit:
            yield tensors[start:i]
            start, head, data = i, other, padded(size, alignment)
        head += described
    yield tensors[start:]
