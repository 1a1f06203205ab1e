"""PyTorch on the CPU: the reference, rebuilt from the integers of whatever artifact it is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch

from edgeqaf import witness
from edgeqaf.protocols import Artifact, Availability, Configuration, Form, RuntimeOptions
from runtime_tests.pytorch import TorchSession


class TorchCpu:
    """See edgeqaf.protocols.Runtime."""

    reads: ClassVar[str | None] = None
    elsewhere: ClassVar[bool] = False
    configurations: ClassVar[tuple[Configuration, ...]] = (
        Configuration("float32", int8_activations=False, offset_form=Form.DECODED),
    )

    def availability(self, options: RuntimeOptions) -> Availability:
        version = f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        return Availability(version, isa=witness.key()["cpu"])

    @contextmanager
    def open(self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Iterator[TorchSession]:
        torch.set_num_threads(options.threads)
        yield TorchSession(artifact, "cpu")


runtime = TorchCpu()
