"""Files of a folder that nobody vouches for."""

import os
import stat
from pathlib import Path
from typing import Any

from edgeqaf.errors import Refused

AGAIN = "the artifact is damaged or was not written by edgeqaf; export it again"


def opened(path: Path) -> Any:
    """Open a regular file that is no symbolic link and has one name only."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", AGAIN) from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(handle)
        raise Refused(f"{path} is not a regular file of its own ({found.st_nlink} links)", AGAIN)
    return os.fdopen(handle, "rb", buffering=0)
