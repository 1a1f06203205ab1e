"""Loops that numba compiles (LLVM), for what numpy would pass over many times.

What is compiled is kept in numba's cache beside the source, so a machine compiles once. Nothing is reassociated
and no product contracted: numba asks LLVM for neither.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    """``function``, compiled when it is first called with such types; the interpreter's lock is free while it runs."""
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        made: Kernel = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to: compile in every process
        made = numba.njit(**settings)(function)
    return made
