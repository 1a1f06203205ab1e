"""PyTorch runs the exact profile's own program, on the CPU and on a GPU: what every other runtime's bits must be."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Availability, Configuration, RuntimeOptions
from runtime_tests.interpreter import Program
from runtime_tests.onnx.session import OnnxSession
from runtime_tests.onnx.ways import exact_ways
from runtime_tests.onnx.worker import Setting

DEVICES = ("cpu", "cuda")


class Interpreted:
    """A program as `runtime_tests.onnx.session.Loaded`."""

    rewritten_by: list[str] | None = None
    threads: int | None = None  # PyTorch has one number for all models

    def __init__(self, program: Program) -> None:
        self._program = program
        self.inputs: dict[str, list[Any]] = {
            i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in program.graph.input
        }

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value.cpu().numpy() for name, value in self._program(feeds).items()}


class Interpreter:
    """See edgeqaf.protocols.Runtime."""

    reads: ClassVar[str | None] = "onnx"
    elsewhere: ClassVar[bool] = False
    configurations: ClassVar[tuple[Configuration, ...]] = tuple(
        replace(way.configuration, name=way.configuration.name.replace("exact", device))
        for device in DEVICES
        for way in exact_ways({"exact": "all"})
    )

    def availability(self, options: RuntimeOptions) -> Availability:
        return Availability(f"torch {torch.__version__}")

    @contextmanager
    def open(self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Iterator[OnnxSession]:
        """Raises RuntimeAbsent for a GPU where there is none."""
        device = configuration.name.split()[0]
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeAbsent("no CUDA device here: PyTorch's bits on a GPU are not compared")
        torch.set_num_threads(options.threads)

        def load(model: str | bytes, setting: Setting) -> Interpreted:
            if isinstance(model, bytes):
                return Interpreted(Program(model, device, artifact.path))
            return Interpreted(Program(Path(model), device))

        yield OnnxSession(artifact.path, load, {"threads": options.threads})


runtime = Interpreter()
