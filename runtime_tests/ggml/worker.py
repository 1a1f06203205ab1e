"""A llama.cpp at the far end of a pipe: python -m runtime_tests.ggml.worker, in any Python that finds our packages.

Requests and answers are pickles, as both ends are this code: a name and its arguments, and then ("value", what it
returns) or ("error", what it raises). While a replay runs, each product goes out as ("seen", it), and whoever sees it
may ask for more until it lets the replay go on.
"""

import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from runtime_tests.ggml.engine import Local, Setting
from runtime_tests.ggml.library import Build, load
from runtime_tests.ggml.tap import Seen

GO_ON, STOP = "go on", "stop"


class Served:
    """The requests there are. source, sink: of pickles."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], resources: ExitStack) -> None:
        self._source, self._sink, self._resources = source, sink, resources
        self._engine: Local | None = None

    def serve(self) -> str:
        """Answer until a replay may go on, or must stop; SystemExit at the end of the stream."""
        while True:
            try:
                name, *arguments = pickle.load(self._source)
            except EOFError:
                raise SystemExit from None
            if name in (GO_ON, STOP):
                return str(name)
            try:
                own = getattr(self, name, None) or getattr(self._engine, name)
                answer = "value", own(*arguments)
            except Exception as error:
                answer = "error", error
            self._send(*answer)

    def greet(self, build: Build) -> tuple[str, str]:
        """Its release, and its release with the processor that computes."""
        library = load(build.folder, build.variant, build.gpu)
        return library.release, library.version

    def open(self, build: Build, path: Path, setting: Setting) -> None:
        library = load(build.folder, build.variant, build.gpu)
        self._engine = Local(library, path, setting, self._resources)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        assert self._engine is not None
        return list(self._engine.generate(prompts, max_new_tokens))

    def reproduce(self, tokens: Sequence[int], more: int) -> list[Any]:
        assert self._engine is not None
        return list(self._engine.reproduce(tokens, more))

    def replay(self, tokens: Sequence[int], more: int, watched: bool) -> Floats:
        assert self._engine is not None
        return self._engine.replay(tokens, more, self._see if watched else None)

    def _see(self, seen: Seen) -> None:
        self._send("seen", seen)
        if self.serve() == STOP:
            raise Refused("whoever watched the run has stopped it")

    def _send(self, kind: str, value: Any) -> None:
        pickle.dump((kind, value), self._sink)
        self._sink.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    with ExitStack() as stack:
        Served(sys.stdin.buffer, answers, stack).serve()
