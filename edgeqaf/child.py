"""Run an inference engine in a process of its own: it may abort on what it does not like.

ggml asserts, and llama.cpp throws through C, on files and texts they cannot take. In a child that
is a finding with a name; in our own process it would be the end of the command. Nor may a file make it
take the machine's memory, or fall silent for ever: a child has limits.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from edgeqaf.errors import OutOfResources, Refused


@dataclass(frozen=True)
class Limits:
    """What a child may take, and each process that it starts.

    memory:  GB of data; None: all that the machine has. Files that are mapped do not count.
    seconds: without an answer.
    """

    memory: float | None = None
    seconds: int = 3600


def stream(
    what: str, function: Callable[..., Iterator[Any]], *arguments: Any, limits: Limits = Limits()
) -> Iterator[Any]:
    """Yield what ``function(*arguments)`` yields, computed in a spawned child process.

    The function must be importable by name and its values picklable. Errors it raises are raised
    here; a child that dies or falls silent raises Refused, one that needs more memory OutOfResources, naming ``what``.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, limits, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            if not receiver.poll(limits.seconds):
                raise Refused(
                    f"{what}: no answer in {limits.seconds} s",
                    "the runtime hangs on this file, or needs more time (--timeout); try another version of it",
                )
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join()
                raise Refused(
                    f"{what}: the runtime's process died (exit {process.exitcode})",
                    "it cannot take this file or text; see its log, or try another version of it",
                ) from None
            if kind == "done":
                return
            if kind == "memory":
                raise OutOfResources(f"{what}: needs more than {value:.1f} GB of memory", "allow it more: --memory GB")
            if kind == "error":
                raise value
            yield value
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _serve(
    sender: Connection, limits: Limits, function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    allowed = _hold_to(limits)
    try:
        for value in function(*arguments):
            sender.send(("item", value))
        sender.send(("done", None))
    except MemoryError:
        sender.send(("memory", allowed / 1e9))
    except Exception as error:
        sender.send(("error", error))


def _hold_to(limits: Limits) -> float:
    """Limit this process; returns the bytes that it may take, as far as the system can be asked to."""
    try:
        import resource
    except ImportError:  # Windows
        return float("inf")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = int(machine if limits.memory is None else limits.memory * 1e9)
    for what, most in ((resource.RLIMIT_DATA, allowed), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    return allowed
