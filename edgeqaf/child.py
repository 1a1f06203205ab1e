"""Run an inference engine in a process of its own: it may abort on what it does not like.

ggml asserts, and llama.cpp throws through C, on files and texts they cannot take. In a child that
is a finding with a name; in our own process it would be the end of the command.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from edgeqaf.errors import Refused

TIMEOUT = 3600  # seconds without an answer


def stream(what: str, function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """Yield what ``function(*arguments)`` yields, computed in a spawned child process.

    The function must be importable by name and its values picklable. Errors it raises are raised
    here; a child that dies or falls silent raises Refused, naming ``what``.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            if not receiver.poll(TIMEOUT):
                raise Refused(
                    f"{what}: no answer in {TIMEOUT} s", "the runtime hangs on this file; try another version of it"
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
            if kind == "error":
                raise value
            yield value
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _serve(sender: Connection, function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    try:
        for value in function(*arguments):
            sender.send(("item", value))
        sender.send(("done", None))
    except Exception as error:
        sender.send(("error", error))
