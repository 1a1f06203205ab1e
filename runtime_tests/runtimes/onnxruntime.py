"""The onnxruntime of this environment, on the CPU: an exported folder run as it is deployed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from edgeqaf.protocols import Artifact, Availability, Configuration, RuntimeOptions
from runtime_tests.onnx import levels, worker
from runtime_tests.onnx.session import OnnxSession


class OnnxRuntime:
    """The runtime; the protocol is `edgeqaf.protocols.Runtime`."""

    reads: ClassVar[str | None] = "onnx"
    configurations: ClassVar[tuple[Configuration, ...]] = levels.configurations()

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
        yield levels.session(artifact.path, worker.load, configuration.name, options.threads)


runtime = OnnxRuntime()
