"""What may be asked of an export; each exporter reads what bears on its own format."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Profile = Literal["everyday", "exact"]
Form = Literal["qdq", "matmulnbits"]
Activations = Literal["float", "int8", "int16"]
ACTIVATIONS: Mapping[Profile, tuple[Activations, ...]] = {"everyday": ("float", "int8"), "exact": ("int16", "int8")}


@dataclass(frozen=True)
class OnnxOptions:
    """What the ONNX folder is made for.

    profile:        everyday: the program as transformers has it; exact: one that gives equal bits everywhere.
    accuracy_level: of the everyday profile, at which ONNX Runtime's low-bit kernels compute, 0 to 4; at 4 they round
                    activations to 8 bits.
    form:           of the everyday profile, qdq: DequantizeLinear and MatMul, which ONNX defines; matmulnbits: ONNX
                    Runtime's own operator.
    activations:    to what those that enter a linear are rounded by the graph itself, of `ACTIVATIONS`.
    """

    profile: Profile = "everyday"
    accuracy_level: int = 1
    form: Form = "qdq"
    activations: Activations = "float"

    @property
    def program(self) -> str:
        """Which program that makes (`edgeqaf.protocols.Artifact.program`): "" for the everyday profile's."""
        return f"exact {self.activations}" if self.profile == "exact" else ""


@dataclass(frozen=True)
class ExportOptions:
    """What may be asked of an export, all formats together.

    tokenizer_from:  a file in the format to be exported, whose tokenizer to take instead of the folder's.
    split_max_bytes: the largest file to export into, where the format can be split over several; None: one file, or
        the split that the model came as.
    """

    tokenizer_from: Path | None = None
    split_max_bytes: int | None = None
    onnx: OnnxOptions = field(default_factory=OnnxOptions)

    def recorded(self, formats: Iterable[str]) -> dict[str, Any]:
        """What the receipt of an export to ``formats`` keeps: format -> how it was made, where there are ways."""
        named = {"gguf": {"tokenizer_from": self.tokenizer_from.name}} if self.tokenizer_from else {}
        every = {"onnx": asdict(self.onnx), **named}
        return {name: every[name] for name in formats if name in every}
