"""llama.cpp on the CPU: the stock library reads the GGUF file that will be shipped.

Two configurations, because llama.cpp has two families of kernels for the same bytes. ``repack`` is
its default, which rearranges the matrices it can while loading; ``plain`` keeps the file's layout.
Both round activations to 8 bits per block.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Availability, Configuration, Form, RuntimeOptions
from runtime_tests.ggml.engine import Local, Setting
from runtime_tests.ggml.library import load
from runtime_tests.ggml.quantize import quantize
from runtime_tests.ggml.session import ReproducingSession

REPACK = "repack"


class LlamaCpp:
    """The llama.cpp runtime; see `edgeqaf.protocols.Runtime`."""

    reads: ClassVar[str | None] = "gguf"
    elsewhere: ClassVar[bool] = False
    configurations: ClassVar[tuple[Configuration, ...]] = (
        Configuration("plain", int8_activations=True, offset_form=Form.FUSED),
        Configuration(REPACK, int8_activations=True, offset_form=Form.FUSED),
    )

    def availability(self, options: RuntimeOptions) -> Availability:
        try:
            library = load(options.llama_lib)
            return Availability(library.version, isa=library.cpu)
        except RuntimeAbsent as absent:
            return Availability(None, f"{absent.cause}; {absent.remedy}")

    @contextmanager
    def open(
        self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
    ) -> Iterator[ReproducingSession]:
        repack = configuration.name == REPACK
        with ExitStack() as resources:
            engine = Local(load(options.llama_lib), artifact.path, Setting(repack, options.threads), resources)
            yield ReproducingSession(engine, artifact, repack)

    def quantize(
        self, source: Path, target: Path, kind: str, options: RuntimeOptions, *, pure: bool, imatrix: Path | None
    ) -> str:
        """Let llama.cpp quantize a float GGUF file to its file type ``kind``; return its version."""
        return quantize(options.llama_lib, source, target, kind, threads=options.threads, pure=pure, imatrix=imatrix)


runtime = LlamaCpp()
