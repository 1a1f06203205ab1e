"""An ONNX Runtime in other places, as a runtime of the ladder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar

from edgeqaf.errors import EdgeqafError, RuntimeAbsent
from edgeqaf.protocols import Artifact, Availability, Configuration, RuntimeOptions
from runtime_tests.onnx import places
from runtime_tests.onnx.session import OnnxSession
from runtime_tests.onnx.ways import Way


class Elsewhere:
    """ONNX Runtime in one or several places; the protocol is `edgeqaf.protocols.Runtime`.

    ways: of each place. Of several places a configuration names its own: "avx2 fused level 1".
    """

    reads: ClassVar[str | None] = "onnx"
    elsewhere: ClassVar[bool] = True

    def __init__(self, ways: Mapping[str, Sequence[Way]]) -> None:
        self._ways: dict[Configuration, tuple[str, Way]] = {}
        for place in ways:
            for way in ways[place]:
                name = f"{place} {way.configuration.name}" if len(ways) > 1 else way.configuration.name
                self._ways[replace(way.configuration, name=name)] = place, way
        self.configurations: tuple[Configuration, ...] = tuple(self._ways)

    def availability(self, options: RuntimeOptions) -> Availability:
        """Its version, by the word of a worker in the first place, or why there is none."""
        first, _ = self._ways[self.configurations[0]]
        return _greeted(first, options.places)

    @contextmanager
    def open(self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Iterator[OnnxSession]:
        """Start the place's worker, which ends with the block."""
        place, way = self._ways[configuration]
        with places.find(place, options.places).open() as engine:
            yield way.session(artifact, engine.load, options.threads, unfused=RuntimeAbsent)  # an older version


@cache
def _greeted(place: str, folder: Path | None) -> Availability:
    """The version that a place's worker gives."""
    try:
        found = places.find(place, folder)
        with found.open() as engine:
            return Availability(engine.version(), isa="emulated, as the configuration says" if found.emulated else "")
    except (EdgeqafError, OSError) as error:
        remedy = getattr(error, "remedy", "")
        return Availability(None, f"{error}: {remedy}" if remedy else str(error))
