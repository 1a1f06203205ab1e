"""Changing a file in place so that a kill, or the power's end, leaves it changed or unchanged, never in between.

A file cannot be changed at many places at once, so two things stand in for that:

- While it is being changed, its first bytes are blank. No program takes it for what it was or will be: a runtime
  that is started then refuses it.
- Beside it lies a journal, ``NAME.patching``, which says how far the work has come, with the bytes that the step
  under way replaces. Whoever opens the journal next puts those back, so that every step is done or not, and goes on.

The journal is two slots of a fixed size, written in turn. Step k: the old bytes and "k - 1 steps are done" go to slot k
mod 2, and to the disk; then the new bytes go into the file, and to the disk. A slot that was cut short fails its
checksum; then its step had not begun, and the other slot's is known to be whole. Undoing a whole step that the
other slot holds costs doing it again, no more.

    slot: "EQJ1", u32 length of the header, header (JSON), the old bytes, u32 CRC of all of it, little endian
"""

import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.staging import flush_directory
from edgeqaf.untrusted import open_regular

MAGIC, BLANK = b"EQJ1", bytes(4)
SUFFIX = ".patching"
ROOM = 2**26  # bytes of a slot, of which only those that are written take space
Edit = tuple[int, bytes | memoryview]  # offset in the file, new bytes


def journal_of(path: Path) -> Path:
    """Where the journal of a file lies."""
    return path.with_name(path.name + SUFFIX)


class Journal:
    """A file open for changes; a context manager. writable: whether there will be any.

    state: what `step` said of the last step of interrupted work that is done, or None; what such work left half done is
    undone. first: the file's first bytes, which are blank meanwhile. Raises Refused for a file that another process
    is changing.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        open_regular(path).close()  # refuses what is no plain file
        self.path, self._slots, self._turn = path, journal_of(path), Lock()
        mode = "r+b" if writable or self._slots.exists() else "rb"
        self._file = open(path, mode, buffering=0)  # noqa: SIM115  closed by __exit__
        self.state: dict[str, Any] | None = None
        try:
            self._lock()
            self._count, self.first = 0, self._get(0, len(BLANK))
            if self._slots.is_file():
                self._recover()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file, as if it were whole; refuses one that ends before them."""
        data = self._get(offset, size)
        if len(data) != size:
            raise Refused(f"{self.path} ends before byte {offset + size}", "the file is truncated; fetch it again")
        return self.first + data[len(self.first) :] if offset == 0 else data

    def step(self, before: dict[str, Any], after: dict[str, Any], edits: Sequence[Edit]) -> None:
        """Make changes, none of them to the first bytes; if this is cut short, `state` will be one of the two given."""
        if self._count == 0:
            self._write_slot(before, [])  # from here on the first bytes may be blank
            flush_directory(self._slots.parent)
        if self._get(0, len(BLANK)) != BLANK:  # nor are they where a kill came just before this, or in `finish`
            self._put([(0, BLANK)])
        self._write_slot(before, [(offset, self._get(offset, len(new))) for offset, new in edits])
        self._put(edits)
        self.state = after

    def finish(self) -> None:
        """The work is done: the file is whole again, and the journal goes."""
        if self._count and self.state is not None:
            self._write_slot(self.state, [])
            self._put([(0, self.first)])
        self._slots.unlink(missing_ok=True)
        flush_directory(self._slots.parent)
        self.state, self._count = None, 0

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # on Windows two processes that change one file are not kept apart
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"{self.path} is being changed by another process", "wait until it has ended") from None

    def _get(self, offset: int, size: int) -> bytes:
        with self._turn:
            self._file.seek(offset)
            return self._file.read(size) or b""

    def _put(self, edits: Sequence[Edit]) -> None:
        with self._turn:
            for offset, new in edits:
                self._file.seek(offset)
                _write(self._file, new)
            os.fsync(self._file.fileno())

    def _recover(self) -> None:
        """Undo the step that the journal holds; without one, nothing had begun."""
        found = [slot for k in (0, 1) if (slot := self._read_slot(k)) is not None]
        if not found:
            if self.first == BLANK:
                raise Refused(
                    f"{self._slots} is damaged, and {self.path} is half changed", "fetch the model file again"
                )
            self._slots.unlink()
            return
        header, edits = max(found, key=lambda slot: slot[0]["count"])
        self._put(edits)
        self._count, self.state, self.first = header["count"], header["state"], bytes.fromhex(header["first"])

    def _write_slot(self, state: dict[str, Any] | None, old: Sequence[Edit]) -> None:
        self._count += 1
        ranges = [(offset, len(data)) for offset, data in old]
        header = {"count": self._count, "state": state, "first": self.first.hex(), "ranges": ranges}
        text = json.dumps(header).encode()
        pieces = [MAGIC + struct.pack("<I", len(text)) + text, *(data for _, data in old)]
        size = sum(map(len, pieces)) + 4
        if size > ROOM:
            raise ValueError(f"a step of {size} bytes; a slot has {ROOM}")
        with open(self._slots, "r+b" if self._slots.exists() else "xb", buffering=0) as file:
            file.seek(self._count % 2 * ROOM)
            total = 0
            for piece in pieces:
                total = zlib.crc32(piece, total)
                _write(file, piece)
            _write(file, struct.pack("<I", total))
            os.fsync(file.fileno())

    def _read_slot(self, which: int) -> tuple[dict[str, Any], list[Edit]] | None:
        """A slot's header and the bytes it keeps; None for one that was never written, or cut short."""
        with open_regular(self._slots) as file:
            file.seek(which * ROOM)
            start = file.read(8)
            if len(start) < 8 or start[:4] != MAGIC:
                return None
            text = file.read(min(struct.unpack("<I", start[4:])[0], ROOM))
            try:
                header = json.loads(text)
                old: list[Edit] = [(offset, file.read(size)) for offset, size in header["ranges"]]
            except (ValueError, TypeError, KeyError):
                return None
            whole = b"".join([start, text, *(data for _, data in old)])
            return (header, old) if file.read(4) == struct.pack("<I", zlib.crc32(whole)) else None


def _write(file: Any, data: bytes | memoryview) -> None:
    """All of ``data``: a raw file may take less at once."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
