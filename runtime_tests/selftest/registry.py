"""Where kinds of defects are found: every marked function in the files of `runtime_tests.selftest.kinds`."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats
from edgeqaf.grid import Grid
from runtime_tests.selftest import kinds

Parts = dict[str, NDArray[Any]]  # of a QTensor (`edgeqaf.parts`), to be edited in place
Random = np.random.Generator


class Target(Enum):
    """What a kind damages, and so what its function is given."""

    MATRIX = "the parts of a matrix on a grid"
    PAIR = "the parts of two matrices of one shape"
    FLOATS = "a float tensor"
    STATEMENT = "what an artifact says, in the format's own form, before it is sealed anew"
    FILE = "the bytes of an artifact"
    LIBRARY = "the machine code of an engine"
    SESSION = "how an engine is set up, or what it holds"


@dataclass(frozen=True)
class Kind:
    """One way to be wrong.

    apply:  makes the damage; returns False where there is none to make.
    among:  of a tensor, one of these words must be in its name; of a statement, the format; of an engine, its name.
    square: only of a matrix that is.
    """

    name: str
    family: str
    target: Target
    apply: Callable[..., Any]
    among: tuple[str, ...] = ()
    square: bool = False

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor can have it."""
        named = not self.among or any(word in name for word in self.among)
        return named and (not self.square or shape[0] == shape[-1])


MatrixEdit = Callable[[Parts, Grid, Random], Any]
_FOUND: list[Kind] = []


def matrix(*among: str, square: bool = False) -> Callable[[MatrixEdit], MatrixEdit]:
    """A kind that edits the parts of one matrix in place: f(parts, grid, rng)."""
    return _marked(Target.MATRIX, among, square)


def pair(edit: Callable[[Parts, Parts], Any]) -> Callable[[Parts, Parts], Any]:
    """A kind that edits two matrices of one shape and grid: f(parts, others)."""
    marked: Callable[[Parts, Parts], Any] = _marked(Target.PAIR)(edit)
    return marked


def floats(*among: str) -> Callable[[Callable[[Floats, Random], Any]], Callable[[Floats, Random], Any]]:
    """A kind that edits a float tensor in place: f(values, rng)."""
    return _marked(Target.FLOATS, among)


def statement(format: str) -> Callable[[Callable[[Any, Random], Any]], Callable[[Any, Random], Any]]:
    """A kind that edits what an artifact says (`edgeqaf.statements.States.forge`): f(form, rng)."""
    return _marked(Target.STATEMENT, (format,))


def file(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A kind that edits an artifact's bytes: f(artifact's path, spans of its tensors, rng)."""
    return _marked(Target.FILE, formats)


def library(runtime: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """A kind that edits the machine code of a runtime's library: f(`runtime_tests.selftest.machine.Code`)."""
    return _marked(Target.LIBRARY, (runtime,))


def session(runtime: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A kind that opens an artifact otherwise than it says: f(runtime, artifact, configuration, options) -> session.

    It is a context manager, as `edgeqaf.protocols.Runtime.open` is; None for a configuration that it bears not on.
    """
    return _marked(Target.SESSION, (runtime,))


def _marked(target: Target, among: tuple[str, ...] = (), square: bool = False) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        family = function.__module__.rpartition(".")[2]
        _FOUND.append(Kind(function.__name__.replace("_", " "), family, target, function, among, square))
        return function

    return mark


@cache
def _all() -> tuple[Kind, ...]:
    for module in pkgutil.iter_modules(kinds.__path__):
        importlib.import_module(f"{kinds.__name__}.{module.name}")
    return tuple(_FOUND)


def every(*targets: Target) -> list[Kind]:
    """The kinds of these targets, in the order of their files; all without any."""
    return [kind for kind in _all() if not targets or kind.target in targets]


def find(name: str) -> Kind:
    """The kind of that name."""
    return next(kind for kind in _all() if kind.name == name)
