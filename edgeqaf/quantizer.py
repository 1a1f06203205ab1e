"""What a quantizer is: it makes a base of a float model.

Each file under ``edgeqaf/quantizers`` exposes ``quantizer``, an instance of one of three kinds:

EachMatrix   a rule for one matrix, ``(weights, grid) -> QTensor``, and callable as such
OntoGrid     one that needs more of the model than a matrix; it gives the tensors of a base
Quantizer    one that makes a base in a way of its own

A quantizer is policy: it chooses codes and scales. What they mean is `edgeqaf.qtensor.decode`'s.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Floats, Tensor
from edgeqaf.errors import Refused, UsageError
from edgeqaf.grid import Grid
from edgeqaf.parts import Parts, split
from edgeqaf.qtensor import QTensor
from edgeqaf.quantize import GRID, Plan, plan
from edgeqaf.runs import Rows, whole
from edgeqaf.source import FloatModel

Rule = Callable[[Floats, Grid], QTensor]


class Quantizer(ABC):
    """takes: the options that it knows, by the names that a Python call and the command's flags give them."""

    takes: ClassVar[frozenset[str]]

    @abstractmethod
    def plan(self, folder: Path, options: Mapping[str, Any]) -> Plan:
        """What `base` will store, decided without reading weights."""

    @abstractmethod
    def base(self, folder: Path, out: Path, options: Mapping[str, Any], *, force: bool = False) -> QModel:
        """Write the base folder ``out`` of the float model in ``folder``, and return it."""


@dataclass(frozen=True)
class Job:
    """A float model on its way onto a grid.

    stored: tensor name -> the grid's name, or "float32"; out: the folder that will be written, not there yet.
    """

    source: FloatModel
    stored: Mapping[str, str]
    grid: Grid
    out: Path
    options: Mapping[str, Any]


class OntoGrid(Quantizer):
    """Every linear weight whose rows fit goes onto one grid; the rest stays float. name: the file's name."""

    takes: ClassVar[frozenset[str]] = frozenset({"grid"})

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def tensors(self, job: Job) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Every tensor of the base by name, each asked for once, and what they lie in cleared away afterwards."""

    def record(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says of the options, beside the grid; no paths."""
        return {}

    def plan(self, folder: Path, options: Mapping[str, Any]) -> Plan:
        return plan(folder, options.get("grid", GRID))

    def base(self, folder: Path, out: Path, options: Mapping[str, Any], *, force: bool = False) -> QModel:
        decided = self.plan(folder, options)
        source, grid = FloatModel(folder), plugins.find("grids", options.get("grid", GRID))
        recorded = {"grid": grid.name, "quantizer": self.name, **self.record(options)}
        with self.tensors(Job(source, decided.stored, grid, out, options)) as tensors:
            model = QModel(source.config, tensors, folder)
            return checkpoint.save(
                model, out, kind="base", parent=None, options=recorded, force=force, title=f"quantize {grid.name}"
            )


class EachMatrix(OntoGrid):
    """A rule that looks at rows of a matrix, float32 [rows, in], each for itself, and a grid; so runs are in memory."""

    def __init__(self, name: str, rule: Rule) -> None:
        super().__init__(name)
        self._rule = rule

    def __call__(self, weights: Floats, grid: Grid) -> QTensor:
        return self._rule(weights, grid)

    def tensors(self, job: Job) -> AbstractContextManager[Mapping[str, Tensor]]:
        return nullcontext(AsAsked(job, lambda name: partial(self._some, name, job)))

    def _some(self, name: str, job: Job, start: int, stop: int) -> Parts:
        try:
            return split(self._rule(job.source.rows(name)(start, stop), job.grid))
        except Refused as error:
            raise Refused(f"{name}: {error.cause}", error.remedy) from None


class AsAsked(Mapping[str, Tensor]):
    """The tensors of a job: by ``quantized(name)`` those that go onto its grid, and the source's the others."""

    def __init__(self, job: Job, quantized: Callable[[str], Rows]) -> None:
        self._job, self._quantized = job, quantized

    def __iter__(self) -> Iterator[str]:
        return iter(self._job.source)

    def __len__(self) -> int:
        return len(self._job.source)

    def __contains__(self, name: object) -> bool:
        return name in self._job.source  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Tensor:
        if not self._on_grid(name):
            return self._job.source[name]
        out, inputs = self._job.source.shape(name)
        return whole(self._quantized(name), self._job.grid, (out, inputs))

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        return self._quantized(name) if self._on_grid(name) else self._job.source.rows(name)

    def _on_grid(self, name: str) -> bool:
        return self._job.stored[name] == self._job.grid.name

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`; no tensor is read for it."""
        return {name: (self._job.stored[name], self._job.source.shape(name)) for name in self}


def require_known(name: str, options: Mapping[str, Any]) -> None:
    """Refuse the options that the quantizer ``name`` does not take."""
    takes = plugins.find("quantizers", name).takes
    for option in sorted(options.keys() - takes):
        flags = ", ".join(sorted(flag(known) for known in takes))
        raise UsageError(f"{flag(option)} is no option of the quantizer {name}", f"it takes {flags}")


def flag(option: str) -> str:
    """An option as the command line spells it."""
    return f"--{option.replace('_', '-')}"
