"""Ways to spoil files."""

import json
import struct
from pathlib import Path
from typing import Any


def flip(file: Path, position: int, bit: int = 0) -> None:
    """Flip one bit; a negative position counts from the end."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


def cut(file: Path, share: float = 0.5) -> None:
    """Keep the first ``share`` of the bytes."""
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def edit(file: Path, **values: Any) -> None:
    """Set top-level values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def flip_in(file: Path, tensor: str, byte: int = 5) -> None:
    """Flip a bit of one tensor's data in a safetensors file."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    start = json.loads(data[8 : 8 + size])[tensor]["data_offsets"][0]
    flip(file, 8 + size + start + byte, bit=4)
