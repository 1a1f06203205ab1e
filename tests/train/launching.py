"""The command line in processes of their own, alone or as ranks, without loading torch anew for each.

A server process loads the packages once and forks itself for every child: each child is a process that
real signals kill and that ends with a real exit code.
"""

import faulthandler
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["edgeqaf.finetune", "edgeqaf.commands.finetune", "edgeqaf.cli"])
PATIENCE = 300  # seconds that a child may take on a busy machine: no law, only an end


@dataclass
class Child:
    """A started process, and the file that its output goes to."""

    process: Any
    said: Path

    def wait(self) -> int:
        """Its exit code; negative for the signal that ended it."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"no end in {PATIENCE} s: {self.output()}")
        code: int = self.process.exitcode
        return code

    def output(self) -> str:
        return self.said.read_text("utf-8")


def start(folder: Path, arguments: Sequence[object], *, ranks: int = 1, before: Callable[..., None] | None = None,
          given: Sequence[Any] = (), environment: dict[str, str] | None = None) -> list[Child]:  # fmt: skip
    """Start ``edgeqaf ARGUMENTS`` as some ranks; each first calls ``before(*given)``, a function of a test module."""
    port = free_port()
    children = []
    for rank in range(ranks):
        own = dict(environment or {}) | {"OMP_NUM_THREADS": "1"}
        if ranks > 1:
            own |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) | {"MASTER_ADDR": "127.0.0.1"}
            own |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks)) | {"MASTER_PORT": str(port)}
        said = folder / f"said-{port}-{rank}.txt"
        process = CONTEXT.Process(target=_main, args=(own, said, [str(a) for a in arguments], before, tuple(given)))
        process.start()
        children.append(Child(process, said))
    return children


def run(folder: Path, arguments: Sequence[object], **options: Any) -> list[Child]:
    """`start`, and wait for all of them to end well."""
    children = start(folder, arguments, **options)
    codes = [child.wait() for child in children]
    assert set(codes) == {0}, [child.output() for child in children]
    return children


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _main(environment: dict[str, str], said: Path, arguments: list[str], before: Any, given: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    faulthandler.enable(sys.stderr)
    if before is not None:
        before(*given)
    from edgeqaf.cli import main

    main(arguments)
