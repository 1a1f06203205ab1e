"""The GGUF container, version 3, little endian, and how it is written; `reader` reads it.

    "GGUF"  version u32  tensor count u64  metadata count u64
    metadata:  key  type u32  value                      strings are a u64 length and bytes
    tensors:   name  dimensions u32  [sizes u64, the row length first]  type u32  offset u64
    data, aligned, one tensor after the other without gaps      (ggml docs/gguf.md; ggml gguf.cpp)

GGUF has no checksum. `seal` adds one over the header, so that a flipped bit in a token or in the
rope base cannot pass; the tensors themselves are covered by their digests.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
SEAL = "edgeqaf.header_sha256"
BLANK = b"0" * 64


class Type(IntEnum):
    """gguf.h, enum gguf_type."""

    UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)


NUMBERS = {
    Type.UINT8: "<u1", Type.INT8: "<i1", Type.UINT16: "<u2", Type.INT16: "<i2", Type.UINT32: "<u4", Type.INT32: "<i4",
    Type.FLOAT32: "<f4", Type.BOOL: "<u1", Type.UINT64: "<u8", Type.INT64: "<i8", Type.FLOAT64: "<f8",
}  # fmt: skip
Datum = bytes | int | float | list[bytes] | NDArray[np.generic]


@dataclass(frozen=True)
class Value:
    """A metadata value: strings are bytes, arrays a list of bytes or a numpy array of type ``of``."""

    type: Type
    data: Datum
    of: Type | None = None


@dataclass(frozen=True)
class TensorInfo:
    """name; shape with the row length last ([out, in]); ggml type; offset and size in bytes, in the file's data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int


def string(text: str | bytes) -> Value:
    return Value(Type.STRING, text.encode() if isinstance(text, str) else text)


def uint32(number: int) -> Value:
    return Value(Type.UINT32, number)


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


def describe_tensors(
    tensors: Iterable[tuple[str, tuple[int, ...], int, int]], alignment: int = ALIGNMENT
) -> list[TensorInfo]:
    """Lay (name, shape, type, size) out one after the other, each aligned."""
    laid_out, offset = [], 0
    for name, shape, kind, size in tensors:
        laid_out.append(TensorInfo(name, shape, kind, offset, size))
        offset += padded(size, alignment)
    return laid_out


def seal(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo], alignment: int = ALIGNMENT) -> bytes:
    """`plain_header` with its own SHA-256 as the last metadata value."""
    before, _, after = plain_header({**metadata, SEAL: string(BLANK)}, tensors, alignment).rpartition(BLANK)
    return before + header_digest(before + BLANK + after, BLANK) + after


def plain_header(entries: Mapping[str, Value], tensors: Sequence[TensorInfo], alignment: int = ALIGNMENT) -> bytes:
    """The header, padded to where the data begins."""
    header = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(entries))
    header += b"".join(_packed_string(key.encode()) + packed_value(value) for key, value in entries.items())
    header += b"".join(map(packed_info, tensors))
    return header.ljust(padded(len(header), alignment), b"\0")


def packed_info(info: TensorInfo) -> bytes:
    """What a header says of a tensor."""
    shape = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
    return _packed_string(info.name.encode()) + shape + struct.pack("<IQ", info.type, info.offset)


def header_digest(header: bytes, found: bytes) -> bytes:
    """The seal that a header should carry where it carries ``found``: SHA-256, in hex, with zeros in that place."""
    before, _, after = header.rpartition(found)  # the seal is the last value; text before it may look the same
    return hashlib.sha256(before + BLANK + after).hexdigest().encode()


def _packed_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def packed_value(value: Value) -> bytes:
    """A value as metadata holds it, its type before it."""
    if isinstance(value.data, bytes):
        return struct.pack("<I", value.type) + _packed_string(value.data)
    if isinstance(value.data, (int, float)):
        return struct.pack("<I", value.type) + np.array(value.data, NUMBERS[value.type]).tobytes()
    assert value.of is not None
    body = (
        b"".join(map(_packed_string, value.data))
        if isinstance(value.data, list)
        else np.asarray(value.data, NUMBERS[value.of]).tobytes()
    )
    return struct.pack("<IIQ", value.type, value.of, len(value.data)) + body
