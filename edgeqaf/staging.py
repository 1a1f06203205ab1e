"""Nothing half-written is ever visible: outputs are staged beside their target and renamed.

`staged` yields a temporary path in the target's own directory. The caller makes a file or a folder
there; when the block ends well every file is flushed to disk and the whole is renamed into place;
when it ends badly (an error, a signal, a full disk) the temporary is removed and the target is as
it was.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeqaf.errors import OutOfResources, UsageError


def require_new(target: Path, force: bool = False) -> None:
    """Refuse a target that already exists, unless ``force`` allows replacing it."""
    if target.is_symlink():
        raise UsageError(f"{target} is a symbolic link", "name the real output path")
    if target.exists() and not force:
        raise UsageError(f"{target} already exists", "choose another output, or pass --force to replace it")


def require_space(target: Path, needed_bytes: int) -> None:
    """Raise OutOfResources when the file system of ``target`` cannot hold ``needed_bytes`` more."""
    existing = next(p for p in [target, *target.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise OutOfResources(
            f"{target} needs {needed_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free",
            "free some space, or choose an output on another disk",
        )


@contextmanager
def staged(target: Path, *, force: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary path that becomes ``target`` when the block succeeds.

    Raises UsageError if the target exists and ``force`` is off, OutOfResources if the disk cannot
    hold ``needed_bytes`` or fills up while writing.
    """
    require_new(target, force)
    require_space(target, needed_bytes)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = target.absolute().with_name(f".{target.name}.{os.getpid()}.part")
    _remove(part)
    try:
        yield part
        _flush(part)
        _replace(part, target)
    except Exception as error:
        number = _errno(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfResources(
                f"{target}: the disk filled up while writing ({os.strerror(number)})",
                "free some space, or choose an output on another disk; nothing was left behind",
            ) from error
        raise
    finally:
        _remove(part)


def _errno(error: Exception) -> int:
    """The system's error number, 0 for none; safetensors' writer gives it in its text only."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return (error.errno or 0) if isinstance(error, OSError) else int(found[1]) if found else 0


def _replace(part: Path, target: Path) -> None:
    """Rename ``part`` to ``target``: at once over a file; over a folder, by way of a hidden ``.old``."""
    old = part.with_suffix(".old")
    try:
        if target.is_dir() or (part.is_dir() and target.exists()):
            _remove(old)  # of a process that was killed
            os.rename(target, old)
        os.replace(part, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    flush_directory(target.absolute().parent)
    _remove(old)


def _flush(path: Path) -> None:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    for directory in [path, *path.rglob("*")]:
        if directory.is_dir():
            flush_directory(directory)


def flush_directory(path: Path) -> None:
    """Make the names in a folder lasting; Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
