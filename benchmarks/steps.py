"""A step of a benchmark in a process of its own, whose peak memory is its own."""

import json
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def measure(step: Callable[[], Mapping[str, Any] | None]) -> None:
    """Take a step in this process, and print as JSON its seconds, peak memory in MB, and what else it says."""
    started = time.perf_counter()
    more = step()
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **(more or {})}
        )
    )


def run(line: Sequence[str], **options: Any) -> dict[str, Any]:
    """What the process of a command line that measures a step printed last. options: of `subprocess.run`."""
    ran = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, **options)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found
