"""Reading the header of an untrusted GGUF file.

Everything is validated before it is allocated: `parse` reads forward, never takes more bytes than
the file still has, and refuses what it does not understand, duplicates, tensors that overlap or
leave gaps (their offsets must be the ones their sizes imply, as ggml demands too), and bytes that
no field accounts for.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused
from edgeqaf.untrusted import Seen, open_regular
from exporters.gguf.container import (
    ALIGNMENT,
    BLANK,
    MAGIC,
    NUMBERS,
    SEAL,
    VERSION,
    TensorInfo,
    Type,
    Value,
    header_digest,
    padded,
)

MAX_HEADER, MAX_STRING, MAX_ARRAY, MAX_ENTRIES, MAX_NAME, MAX_DIMS = 10**8, 2**24, 2**22, 2**16, 63, 4
MAX_ALIGNMENT = 2**20
BLANKED = bytes(4)  # what `edgeqaf patch` puts there while it works
DAMAGED = "the file is damaged or not a GGUF file; export or fetch it again"
HEX = re.compile(rb"[0-9a-f]{64}")
PRINTABLE = re.compile(rb"[!-.0-~]+")  # printable ASCII without the slash


@dataclass(frozen=True)
class Contents:
    """A parsed header.

    start: where in the file the data begins, in bytes.
    """

    seen: Seen
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    start: int

    @property
    def path(self) -> Path:
        return self.seen.path

    def padding(self, info: TensorInfo) -> int:
        """Bytes between a tensor and the next, or the end of the file, which need not be aligned."""
        return (
            min(padded(info.offset + info.size, self.alignment), self.seen.size - self.start) - info.offset - info.size
        )

    def raw(self, info: TensorInfo) -> NDArray[np.uint8]:
        """A tensor's bytes; refuses padding after it that is not zero."""
        self.check_padding(info)
        return self.seen.read(self.start + info.offset, info.size)

    def check_padding(self, info: TensorInfo) -> None:
        """Refuse padding after a tensor that is not zero."""
        if self.seen.read(self.start + info.offset + info.size, self.padding(info)).any():
            raise Refused(f"{self.path}: {info.name} is followed by padding that is not zero", DAMAGED)

    def header(self) -> bytes:
        """The bytes before the data."""
        return self.seen.read(0, self.start).tobytes()


def check_seal(contents: Contents) -> bool:
    """Whether the header is sealed; refuses one that was changed after `seal`.

    A seal is the last value, 64 hex digits. Whatever key such a value has is held to be the seal's, so that damage to
    the key cannot make a sealed file pass for one of another maker.
    """
    path, key = contents.path, next(reversed(list(contents.metadata)), "")
    found = contents.metadata[key].data if key else b""
    if SEAL not in contents.metadata and not (isinstance(found, bytes) and HEX.fullmatch(found)):
        return False
    if key != SEAL or not isinstance(found, bytes) or len(found) != len(BLANK):
        raise Refused(
            f"{path}: its last metadata value is no {SEAL}", "the file was damaged or edited; export it again"
        )
    header = contents.header()
    expected = header_digest(header, found)
    if found != expected:
        raise Refused(
            f"{path}: {SEAL} is {found.decode('ascii', 'replace')}, the header's is {expected.decode()}",
            "the file was damaged or edited after export; export it again",
        )
    return True


def parse(path: Path, sizes: Mapping[int, tuple[int, int]], first: bytes = b"") -> Contents:
    """Read and validate the header of ``path``. sizes: ggml type -> (weights, bytes) per block; first: `Seen.first`."""
    with open_regular(path) as file:
        return parse_header(file, Seen.of(file, path, first), sizes)


def parse_header(file: BinaryIO, seen: Seen, sizes: Mapping[int, tuple[int, int]]) -> Contents:
    """`parse` of the header that ``file`` begins with, which may be all of the file that is there."""
    size = seen.size
    reader = _Reader(file, seen.path, size)
    magic = reader.take(4, "magic")
    if magic == BLANKED and not seen.first:
        raise Refused(
            f"{seen.path}: a patch was being put in or taken out when that was cut short",
            "run edgeqaf patch apply or revert again, with the same patch",
        )
    if (seen.first or magic) != MAGIC:
        raise reader.refusal("the first four bytes are not GGUF")
    version = reader.integer(4, "version")
    if version != VERSION:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") == VERSION
        raise reader.refusal(f"GGUF version {version}{' (big endian)' if swapped else ''}, this reads {VERSION}")
    tensors = reader.count("tensor count", MAX_ENTRIES, 8 + 4 + 8 + 4 + 8)
    entries = reader.count("metadata count", MAX_ENTRIES, 8 + 4 + 1)
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = reader.name("metadata key", MAX_STRING)
        if key in metadata:
            raise reader.refusal(f"metadata key {key} appears twice")
        metadata[key] = reader.value(key)
    alignment = reader.alignment(metadata.get("general.alignment"))
    infos: dict[str, TensorInfo] = {}
    end = 0
    for _ in range(tensors):
        info = reader.tensor(sizes, end)
        if info.name in infos:
            raise reader.refusal(f"tensor {info.name} appears twice")
        infos[info.name] = info
        end = padded(info.offset + info.size, alignment)
    start = padded(reader.position, alignment)
    reader.zeros(start - reader.position, "the padding after the header")
    last = max((i.offset + i.size for i in infos.values()), default=0)
    if start + last > size or size > start + end:
        name = next(reversed(infos), "the header")
        raise reader.refusal(f"{size} bytes long, but {name} ends at byte {start + last}")
    return Contents(seen, metadata, infos, alignment, start)


class _Reader:
    """Forward reading with every length checked against what the file still has."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file, self._path, self.size = file, path, size
        self.position = 0

    def refusal(self, cause: str) -> Refused:
        return Refused(f"{self._path}: {cause}", DAMAGED)

    def take(self, size: int, what: str) -> bytes:
        left = min(self.size, MAX_HEADER) - self.position
        if size > left:
            raise self.refusal(f"{what} needs {size} bytes at byte {self.position}, the header may take {left} more")
        data = self._file.read(size)
        if len(data) != size:
            raise self.refusal(f"{what}: the file shrank while it was read")
        self.position += size
        return data

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def count(self, what: str, limit: int, least_bytes: int) -> int:
        """A u64 that counts things of at least ``least_bytes`` each."""
        number = self.integer(8, what)
        if number > limit or number * least_bytes > self.size - self.position:
            left = self.size - self.position
            raise self.refusal(f"{what} is {number}; the limit is {limit}, and the file has {left} bytes left")
        return number

    def string(self, what: str, limit: int) -> bytes:
        return self.take(self.count(f"length of {what}", limit, 1), what)

    def strings(self, what: str, count: int) -> Iterator[bytes]:
        """`string`, many times, without its calls: a vocabulary has hundreds of thousands."""
        read, end = self._file.read, min(self.size, MAX_HEADER)
        for _ in range(count):
            length = int.from_bytes(head := read(8), "little")
            if len(head) < 8 or length > MAX_STRING or self.position + 8 + length > end:
                self._file.seek(self.position)
                self.string(what, MAX_STRING)  # says what is wrong
            self.position += 8
            yield self.take(length, what)

    def name(self, what: str, limit: int) -> str:
        text = self.string(what, limit)
        if not PRINTABLE.fullmatch(text) or b".." in text:
            raise self.refusal(f"{what} {text[:64]!r} is not a name")
        return text.decode("ascii")

    def kind(self, key: str) -> Type:
        number = self.integer(4, f"type of {key}")
        if number not in set(Type):
            raise self.refusal(f"{key} has unknown metadata type {number}")
        return Type(number)

    def value(self, key: str) -> Value:
        kind = self.kind(key)
        if kind is Type.STRING:
            return Value(kind, self.string(key, MAX_STRING))
        if kind is not Type.ARRAY:
            return Value(kind, self.numbers(key, kind, 1)[0].item())
        of = self.kind(key)
        if of is Type.ARRAY:
            raise self.refusal(f"{key} is an array of arrays")
        if of is Type.STRING:
            count = self.count(f"length of {key}", MAX_ARRAY, 8)
            return Value(kind, list(self.strings(key, count)), of)
        return Value(kind, self.numbers(key, of, self.count(f"length of {key}", MAX_ARRAY, 1)), of)

    def numbers(self, key: str, kind: Type, count: int) -> NDArray[np.generic]:
        dtype = np.dtype(NUMBERS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        if kind is Type.BOOL and count and int(values.max()) > 1:
            raise self.refusal(f"{key} holds {int(values.max())} as a truth value")
        return values

    def alignment(self, value: Value | None) -> int:
        if value is None:
            return ALIGNMENT
        number = value.data
        if value.type is not Type.UINT32 or not isinstance(number, int) or number.bit_count() != 1:
            raise self.refusal(f"general.alignment is {number!r}, not a power of two")
        if number > MAX_ALIGNMENT:
            raise self.refusal(f"general.alignment is {number}; the limit is {MAX_ALIGNMENT}")
        return number

    def tensor(self, sizes: Mapping[int, tuple[int, int]], expected_offset: int) -> TensorInfo:
        name = self.name("tensor name", MAX_NAME)
        dims = self.integer(4, f"{name}: number of dimensions")
        if not 1 <= dims <= MAX_DIMS:
            raise self.refusal(f"{name} has {dims} dimensions; 1 to {MAX_DIMS} are allowed")
        shape = tuple(self.integer(8, f"{name}: shape") for _ in range(dims))[::-1]
        kind, offset = self.integer(4, f"{name}: type"), self.integer(8, f"{name}: offset")
        if kind not in sizes:
            raise self.refusal(f"{name} has ggml type {kind}, which is not read; known: {sorted(sizes)}")
        block, block_bytes = sizes[kind]
        if 0 in shape or shape[-1] % block:
            raise self.refusal(f"{name}: shape {list(shape)} does not fit ggml type {kind}'s block of {block}")
        if offset != expected_offset:
            raise self.refusal(f"{name} begins at offset {offset}, {expected_offset} expected: tensors overlap or gap")
        return TensorInfo(name, shape, kind, offset, prod(shape) // block * block_bytes)

    def zeros(self, size: int, what: str) -> None:
        if any(self.take(size, what)):
            raise self.refusal(f"{what} is not zero")
