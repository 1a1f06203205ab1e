"""Files of unknown makers: opened for reading only if they are plain files, and read by offset, never mapped."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeqaf.errors import Refused


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; refuse what is missing, a folder, a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", "check the path") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} is not a regular file", "check the path")
    return os.fdopen(descriptor, "rb")


@dataclass(frozen=True)
class Seen:
    """A file as it was when its header was checked.

    size: in bytes. first: its first bytes where they are blank for now (`edgeqaf.patch.journal`).
    """

    path: Path
    size: int
    stamp: tuple[int, ...]
    first: bytes = b""

    @classmethod
    def of(cls, file: BinaryIO, path: Path, first: bytes = b"") -> "Seen":
        """What ``file`` is now."""
        status = os.fstat(file.fileno())
        return cls(path, status.st_size, (status.st_dev, status.st_ino, status.st_mtime_ns), first)

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """``size`` bytes from ``offset`` on; refuses a file that changed since, or ends before them."""
        data = np.empty(size, np.uint8)
        with open_regular(self.path) as file:
            if Seen.of(file, self.path, self.first) != self:
                raise Refused(f"{self.path} changed while it was read", "leave the file alone and try again")
            file.seek(offset)
            count = file.readinto(data.data)  # type: ignore[attr-defined]
        if count != size:
            raise Refused(
                f"{self.path} ends at byte {offset + count}, {offset + size} expected",
                "the file is truncated; fetch or make it again",
            )
        if offset == 0 and self.first:
            data[: len(self.first)] = np.frombuffer(self.first, np.uint8)
        return data
