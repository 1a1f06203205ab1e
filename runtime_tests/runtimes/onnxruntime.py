"""The onnxruntime of this environment, on the CPU: an exported folder run as it is deployed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from edgeqaf.protocols import Artifact, Availability, Configuration, RuntimeOptions
from runtime_tests.onnx import worker
from runtime_tests.onnx.session import OnnxSession
from runtime_tests.onnx.ways import all_ways

WAYS = {way.configuration: way for way in all_ways()}


class OnnxRuntime:
    """The runtime; the protocol is `edgeqaf.protocols.Runtime`."""

    reads: ClassVar[str | None] = "onnx"
    elsewhere: ClassVar[bool] = False
    configurations: ClassVar[tuple[Configuration, ...]] = tuple(WAYS)

    def availability(self, options: RuntimeOptions) -> Availability:
        """Its version, or why it cannot be imported."""
        try:
            import onnxruntime
        except Exception as error:  # a broken binary can raise anything
            return Availability(None, f"onnxruntime cannot be imported: {error}")
        return Availability(onnxruntime.__version__)

    @contextmanager
    def open(self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Iterator[OnnxSession]:
        """Open the folder; the whole model is loaded when `logits` or `generate` first need it."""
        yield WAYS[configuration].session(artifact, worker.load, options.threads)


runtime = OnnxRuntime()
