"""A llama.cpp in other places, as a runtime of the ladder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from edgeqaf.errors import EdgeqafError
from edgeqaf.protocols import Artifact, Availability, Configuration, Form, RuntimeOptions
from runtime_tests.ggml.engine import Setting
from runtime_tests.ggml.places import Find
from runtime_tests.ggml.session import LlamaCppSession

VECTOR = 8  # rows up to which Vulkan has kernels of their own (mul_mat_vec_max_cols in ggml-vulkan.cpp)
NAMED = "as the configuration says"


@dataclass(frozen=True)
class Way:
    """What the kernels do (`Configuration`), where they run and how.

    rows, least: as in `Setting`. session: what can be asked of it.
    """

    configuration: Configuration
    find: Find
    repack: bool = False
    rows: int | None = None
    least: int = 1
    session: type[LlamaCppSession] = LlamaCppSession


def cpu_ways(name: str, find: Find, repack: bool, session: type[LlamaCppSession]) -> Iterator[Way]:
    """The ways of a CPU's code: ``plain``, and ``repack`` where it rearranges any matrix."""
    for kind in ("plain", "repack") if repack else ("plain",):
        form = Configuration(f"{name} {kind}", int8_activations=True, offset_form=Form.FUSED)
        yield Way(form, find, kind == "repack", session=session)


def gpu_ways(half: Find, single: Find) -> Iterator[Way]:
    """The ways of a GPU's code that leaves activations as floats. half: its default; single: without float16.

    For up to `VECTOR` rows it has other kernels, which decode to float32 in either.
    """
    for name, find, form in (("float32", single, Form.DECODED), ("float16", half, Form.HALF)):
        rows = Configuration(f"{name} by {VECTOR} rows", int8_activations=False, offset_form=Form.DECODED)
        yield Way(rows, find, rows=VECTOR)
        many = Configuration(name, int8_activations=False, offset_form=form)
        yield Way(many, find, least=VECTOR + 1)


class Elsewhere:
    """llama.cpp in one or several places; the protocol is `edgeqaf.protocols.Runtime`.

    isa: by what kernels are chosen; "" where that is this machine's instruction set.
    """

    reads: ClassVar[str | None] = "gguf"
    elsewhere: ClassVar[bool] = True

    def __init__(self, ways: Sequence[Way], isa: str = NAMED) -> None:
        self._ways = {way.configuration: way for way in ways}
        self._isa = isa
        self.configurations: tuple[Configuration, ...] = tuple(self._ways)

    def availability(self, options: RuntimeOptions) -> Availability:
        """Its version, by the word of a worker in the first place, or why there is none."""
        first, *_ = self._ways.values()
        found = _greeted(first.find, options.places)
        if isinstance(found, str):
            return Availability(None, found)
        release, version = found
        return Availability(release if self._isa == NAMED else version, isa=self._isa)

    @contextmanager
    def open(
        self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
    ) -> Iterator[LlamaCppSession]:
        """Start the place's worker, which ends with the block. Raises RuntimeAbsent where it cannot run there."""
        way = self._ways[configuration]
        setting = Setting(way.repack, options.threads, way.rows, way.least)
        with way.find(options.places).open(artifact, setting) as engine:
            yield way.session(engine, artifact, way.repack)


@cache
def _greeted(find: Find, folder: Path | None) -> tuple[str, str] | str:
    """What a place's worker says (`Place.greet`), or why it says nothing."""
    try:
        return find(folder).greet()
    except (EdgeqafError, OSError) as error:
        remedy = getattr(error, "remedy", "")
        return f"{error}: {remedy}" if remedy else str(error)
