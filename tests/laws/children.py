"""What a child process may be asked to do."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

ASK = "import resource; print(*(resource.getrlimit(w)[0] for w in (resource.RLIMIT_DATA, resource.RLIMIT_CORE)))"


def fill(gigabytes: float) -> Iterator[int]:
    yield int(np.ones(int(gigabytes * 1e9), np.uint8)[-1])


def sleep(seconds: float) -> Iterator[str]:
    yield "before"
    time.sleep(seconds)
    yield "after"


def abort() -> Iterator[int]:
    os.abort()
    yield 0


def limits() -> Iterator[list[int]]:
    """Of the child, and of a process that it starts: most data, largest core."""
    yield [resource.getrlimit(what)[0] for what in (resource.RLIMIT_DATA, resource.RLIMIT_CORE)]
    yield [int(n) for n in subprocess.check_output([sys.executable, "-c", ASK]).split()]
