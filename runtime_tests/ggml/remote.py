"""The host's end of `runtime_tests.ggml.worker`'s pipe."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.protocols import Artifact
from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Reproduction
from runtime_tests.ggml.engine import Setting
from runtime_tests.ggml.library import Build
from runtime_tests.ggml.tap import Seen
from runtime_tests.ggml.worker import GO_ON, STOP
from runtime_tests.place import Worker


def greet(worker: Worker, build: Build) -> tuple[str, str]:
    """A build's release, and its release with the processor that computes. Raises RuntimeAbsent."""
    release, version = _ask(worker, "greet", build)
    return release, version


class Remote:
    """An `Engine` in a worker. Raises what the worker's raises, and Refused where the worker dies."""

    def __init__(self, worker: Worker, build: Build, path: Path, setting: Setting) -> None:
        self._worker = worker
        self._ask("open", build, path.resolve(), setting)

    def type_name(self, name: str) -> str:
        return str(self._ask("type_name", name))

    def weights(self, name: str, rows: NDArray[np.int64] | None = None) -> Floats:
        weights: Floats = self._ask("weights", name, rows)
        return weights

    def multiply(self, name: str, x: Floats, repack: bool) -> Floats:
        y: Floats = self._ask("multiply", name, x, repack)
        return y

    def logits(self, tokens: Sequence[int]) -> Floats:
        made: Floats = self._ask("logits", tokens)
        return made

    def logits_with(self, prompts: Sequence[Sequence[int]], threads: int, rows: int) -> list[Floats]:
        made: list[Floats] = self._ask("logits_with", prompts, threads, rows)
        return made

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        for prompt in prompts:
            (made,) = self._ask("generate", [prompt], max_new_tokens)
            yield made

    def replay(self, tokens: Sequence[int], more: int, see: Callable[[Seen], None] | None) -> Floats:
        _send(self._worker, "replay", tokens, more, see is not None)
        while isinstance(answer := _receive(self._worker), Seen):
            assert see is not None
            try:
                see(answer)
            except BaseException:
                self._stop()
                raise
            _send(self._worker, GO_ON)
        made: Floats = answer
        return made

    def hold(self, artifact: Artifact, expected: Mapping[str, QTensor]) -> None:
        self._ask("hold", artifact, expected)

    def reproduce(self, tokens: Sequence[int], more: int) -> Iterator[Reproduction]:
        yield from self._ask("reproduce", tokens, more)

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._ask("encode", text)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._ask("decode", tokens))

    def _ask(self, name: str, *arguments: Any) -> Any:
        return _ask(self._worker, name, *arguments)

    def _stop(self) -> None:
        """End a replay; what the worker says of it is of no interest."""
        _send(self._worker, STOP)
        pickle.load(self._worker.stdout)


def _ask(worker: Worker, name: str, *arguments: Any) -> Any:
    _send(worker, name, *arguments)
    return _receive(worker)


def _send(worker: Worker, *request: Any) -> None:
    try:
        pickle.dump(request, worker.stdin)
        worker.stdin.flush()
    except BrokenPipeError:
        raise worker.died() from None


def _receive(worker: Worker) -> Any:
    try:
        kind, value = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError):  # at the end of the stream, or amid an answer
        raise worker.died() from None
    if kind == "error":
        raise value
    return value
