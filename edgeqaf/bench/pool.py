"""Child processes that take work one by one: each loads what is heavy once, and may die without ending the rest."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from edgeqaf.errors import EdgeqafError, Refused

T = TypeVar("T")


def work_off(function: Callable[[T], Any], items: Sequence[T], jobs: int) -> Iterator[tuple[T, EdgeqafError | None]]:
    """Call ``function`` on every item in ``jobs`` processes; yield each item when it is done, with what stopped it.

    The function must be importable by name. Children are ended when the caller stops listening.
    """
    waiting, busy = deque(items), dict[Connection, tuple[BaseProcess, T]]()
    idle: list[tuple[BaseProcess, Connection]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                process, connection = idle.pop() if idle else _start(function)
                item = waiting.popleft()
                connection.send(item)
                busy[connection] = process, item
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, item = busy.pop(ready)
                try:
                    error = ready.recv()
                    idle.append((process, ready))
                except (EOFError, ConnectionError):
                    process.join()
                    error = Refused(f"its process died (exit {process.exitcode})", "see its log, or run it again")
                yield item, error
    finally:
        for process in [p for p, _ in idle] + [p for p, _ in busy.values()]:
            process.terminate()
            process.join()


def _start(function: Callable[..., Any]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function))
    process.start()
    theirs.close()
    return process, ours


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """Answer each item with None, or with the error that stopped it, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that scratch folders are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        error: EdgeqafError | None = None
        try:
            function(item)
        except EdgeqafError as found:
            error = found
        except Exception as found:
            error = EdgeqafError(f"internal error: {type(found).__name__}: {found}", "please report it")
        connection.send(error)


def _end_with_parent() -> None:
    """A parent that was killed could not end its children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
