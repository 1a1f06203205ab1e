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
from edgeqaf.digest import FLOAT32, Floats, Tensor
from edgeqaf.errors import Refused, UsageError
from edgeqaf.grid import Grid
from edgeqaf.parts import Parts, split
from edgeqaf.qtensor import QTensor
from edgeqaf.quantize import GRID, Plan, plan
from edgeqaf.runs import Rows, whole
from edgeqaf.source import ENDS, FloatModel, is_linear

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

    grids: of the tensors that go onto one, by name; the others stay float. grid: that of the linear weights.
    out: the folder that will be written, not there yet.
    """

    source: FloatModel
    grids: Mapping[str, Grid]
    grid: Grid
    out: Path
    options: Mapping[str, Any]

    @property
    def ends(self) -> dict[str, Grid]:
        """Of the grids, those of embedding and head."""
        return {name: grid for name, grid in self.grids.items() if name in ENDS}


class OntoGrid(Quantizer):
    """Every linear weight whose rows fit goes onto one grid, the two ends onto another if asked; the rest stays float.

    name: the file's name. grid: of the linear weights. ends: of the embedding, and of a head that is not tied to it.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"grid", "ends"})

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def tensors(self, job: Job) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Every tensor of the base by name, each asked for once, and what they lie in cleared away afterwards."""

    def record(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says of the options, beside the grids; no paths."""
        return {}

    def plan(self, folder: Path, options: Mapping[str, Any]) -> Plan:
        return plan(folder, options.get("grid", GRID), options.get("ends"))

    def base(self, folder: Path, out: Path, options: Mapping[str, Any], *, force: bool = False) -> QModel:
        decided = self.plan(folder, options)
        source, grid = FloatModel(folder), plugins.find("grids", options.get("grid", GRID))
        grids = {name: plugins.find("grids", kind) for name, kind in decided.stored.items() if kind != FLOAT32}
        ends = {"ends": plugins.find("grids", options["ends"]).name} if "ends" in options else {}
        recorded = {"grid": grid.name, **ends, "quantizer": self.name, **self.record(options)}
        with self.tensors(Job(source, grids, grid, out, options)) as tensors:
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
        return nullcontext(AsAsked(job, lambda name: self.rows(job, name)))

    def rows(self, job: Job, name: str) -> Rows:
        """A tensor of the job on its grid, made run by run as it is asked for."""
        return partial(self._some, job, name)

    def _some(self, job: Job, name: str, start: int, stop: int) -> Parts:
        try:
            return split(self._rule(job.source.rows(name)(start, stop), job.grids[name]))
        except Refused as error:
            raise Refused(f"{name}: {error.cause}", error.remedy) from None


class AsAsked(Mapping[str, Tensor]):
    """The tensors of a job: by ``quantized(name)`` those that go onto a grid, and the source's the others."""

    def __init__(self, job: Job, quantized: Callable[[str], Rows]) -> None:
        self._job, self._quantized = job, quantized

    def __iter__(self) -> Iterator[str]:
        return iter(self._job.source)

    def __len__(self) -> int:
        return len(self._job.source)

    def __contains__(self, name: object) -> bool:
        return name in self._job.source  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._job.grids:
            return self._job.source[name]
        out, inputs = self._job.source.shape(name)
        return whole(self._quantized(name), self._job.grids[name], (out, inputs))

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        return self._quantized(name) if name in self._job.grids else self._job.source.rows(name)

    def outline(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`edgeqaf.checkpoint.QModel.outline`; no tensor is read for it."""
        source, grids = self._job.source, self._job.grids
        return {name: (grids[name].name if name in grids else FLOAT32, source.shape(name)) for name in self}


def misfits(base: QModel) -> dict[str, str]:
    """Of a base that a quantizer put onto grids: each tensor that stayed float -> the grid that its rows do not fit."""
    options, outline = base.manifest["options"], base.outline()
    meant = {name: options["grid"] for name in outline if is_linear(base.config["model_type"], name)}
    meant |= {name: options["ends"] for name in ENDS if name in outline and "ends" in options}
    return {name: meant[name] for name in sorted(meant) if outline[name][0] == FLOAT32}


def require_known(name: str, options: Mapping[str, Any]) -> None:
    """Refuse the options that the quantizer ``name`` does not take."""
    takes = plugins.find("quantizers", name).takes
    for option in sorted(options.keys() - takes):
        flags = ", ".join(sorted(flag(known) for known in takes))
        raise UsageError(f"{flag(option)} is no option of the quantizer {name}", f"it takes {flags}")


def flag(option: str) -> str:
    """An option as the command line spells it."""
    return f"--{option.replace('_', '-')}"
