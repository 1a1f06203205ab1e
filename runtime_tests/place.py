"""Places: what runs an engine elsewhere is a command that starts a worker, which answers through its pipes.

Whatever the engine, a place needs parts of one folder, laid out by `make places`, and often an emulated processor.
Absent means RuntimeAbsent, with what is missing and how to get it.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgeqaf.errors import Refused, RuntimeAbsent

# SVE registers of 128 bits, as phones and servers have them. With 512 bits and int8 matrix products, which no processor
# that we know of has together, llama.cpp's products of Q4_K and Q6_K are wrong.
OPTIONS = {"max": ",sve-default-vector-length=16"}
ROOT = Path(__file__).resolve().parents[1]  # the folder that holds our packages
PATIENCE = 10  # seconds for a worker that has closed its pipe to end
REMEDY = "make places fetches it; name the folder with --places"


class Worker:
    """A running worker: what it reads and writes."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Any) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.name, self._process, self._log = name, process, log
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout

    def died(self) -> Refused:
        """The error for a worker that answers no more; one that lives on, and answers nonsense, is ended."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return Refused(f"{self.name}: the worker died (exit {code}): {last}")

    def kill(self) -> None:
        self._process.kill()


@dataclass(frozen=True)
class Place:
    """Where an engine runs.

    command, environment: start its worker.
    emulated: whether its processor is, and so does not depend on this machine's.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False

    @contextmanager
    def started(self) -> Iterator[Worker]:
        """Start the worker; it ends with the block."""
        with tempfile.TemporaryFile() as log:
            environment = {**os.environ, **self.environment}
            process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )
            try:
                yield Worker(self.name, process, log)
            finally:
                process.kill()
                process.communicate()


def part(folder: Path | None, name: str) -> Path:
    """A part of the folder of places."""
    if folder is None:
        raise RuntimeAbsent("no folder of places is named", REMEDY)
    if not (folder / name).exists():
        raise RuntimeAbsent(f"{folder} has no {name}", REMEDY)
    return (folder / name).resolve()


def emulator(program: str, folder: Path | None) -> str:
    """The command of a qemu."""
    installed = shutil.which(program)
    return installed or str(part(folder, "qemu") / program)


def arm64_python(model: str, folder: Path | None) -> tuple[tuple[str, ...], str]:
    """An arm64 Python on an emulated processor, ``model`` as qemu calls it: its command, and where its packages are."""
    root, program = part(folder, "aarch64"), emulator("qemu-aarch64-static", folder)
    python, options = str(next(root.glob("usr/bin/python3.*"))), OPTIONS.get(model, "")
    return (program, "-L", str(root / "cpu" / model), "-cpu", f"{model}{options}", python), str(root / "wheels")
