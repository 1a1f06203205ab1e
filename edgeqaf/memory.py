"""Memory of this process, as the system counts it."""

import ctypes
import os


def give_back() -> None:
    """Return freed memory to the system where the C library is glibc, which keeps blocks of up to 32 MB for later."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
