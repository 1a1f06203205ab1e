"""PyTorch on a CUDA GPU, in float32: weights decoded there, and multiplied by cuBLAS, TF32 off.

Its kernels for bfloat16 and float16 are no configuration here: they round each decoded weight to 8 or 11 bits before
they multiply, and so do not compute with the stored integers' values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Availability, Configuration, Form, RuntimeOptions
from runtime_tests.pytorch import TorchSession


class TorchCuda:
    """See edgeqaf.protocols.Runtime. device: as torch names it.

    Few machines have one, so it is asked by name, or with a folder of places.
    """

    reads: ClassVar[str | None] = None
    elsewhere: ClassVar[bool] = True
    configurations: ClassVar[tuple[Configuration, ...]] = (
        Configuration("float32", int8_activations=False, offset_form=Form.DECODED),
    )

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def availability(self, options: RuntimeOptions) -> Availability:
        if self._device != "cuda":
            return Availability(f"torch {torch.__version__}, {self._device}")
        if not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            return Availability(None, f"no CUDA GPU here (torch {torch.__version__}, {built})")
        about = torch.cuda.get_device_properties(0)
        name = f"{about.name}, compute capability {about.major}.{about.minor}"
        return Availability(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {name}", isa=name)

    @contextmanager
    def open(self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions) -> Iterator[TorchSession]:
        """Raises RuntimeAbsent where there is no GPU."""
        available = self.availability(options)
        if available.version is None:
            raise RuntimeAbsent(available.reason)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        yield TorchSession(artifact, self._device)


runtime = TorchCuda()
