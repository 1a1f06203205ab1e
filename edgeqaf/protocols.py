"""What the leaves agree on: exporters write artifacts, runtimes read them, neither knows the other.

Protocols rather than base classes: a leaf owes the core a few names and nothing else, so it can be
read, tested and replaced alone. If you find yourself adding a method here for one leaf, stop: the
special case belongs in that leaf.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeqaf.checkpoint import QModel
from edgeqaf.child import Limits
from edgeqaf.digest import Floats, Tensor, merkle_root, tensor_digest
from edgeqaf.grid import Grid
from edgeqaf.qtensor import QTensor
from edgeqaf.runs import ByRows, Outline, Outlined, digests, kind_of

ALL = slice(None)


@dataclass(frozen=True)
class Stored:
    """A logical tensor as one file stores it.

    tensor: its value after the file's layout is undone (original row order, [out, in]).
    name:   its name inside the file.
    rows:   None, or int64 [out]: row i of the file holds row ``rows[i]`` of the tensor.
    """

    tensor: Tensor
    name: str
    rows: NDArray[np.int64] | None = None

    def in_file_order(self, x: NDArray[Any]) -> NDArray[Any]:
        """Logical rows [out, ...] -> the file's rows."""
        return x if self.rows is None else x[self.rows]

    def in_logical_order(self, x: NDArray[Any]) -> NDArray[Any]:
        """The file's rows [out, ...] -> logical rows; the inverse of `in_file_order`."""
        if self.rows is None:
            return x
        logical = np.empty_like(x)
        logical[self.rows] = x
        return logical


@dataclass(frozen=True)
class Artifact:
    """An exported file or folder, read back.

    format:    the exporter's registry key.
    path:      the file (GGUF; of several the first) or folder (ONNX).
    tensors:   logical name -> how and where it is stored.
    reference: folder with ``config.json`` and tokenizer files, for runtimes that need them.
    """

    format: str
    path: Path
    tensors: Mapping[str, Stored]
    reference: Path

    @property
    def root(self) -> str:
        """The Merkle root of its tensors."""
        return merkle_root(self.digests())

    @property
    def program(self) -> str:
        """Which of its format's programs it is, where there are several; else ""."""
        return str(getattr(self.tensors, "program", ""))

    @property
    def metadata(self) -> Mapping[str, str]:
        """SHA-256 of each metadata value by key, where the file itself says how it is to be run; else empty."""
        found: Mapping[str, str] = getattr(self.tensors, "metadata", {})
        return found

    def digests(self, title: str = "") -> dict[str, str]:
        """The digest of every tensor by name. title: of a progress bar, where there should be one."""
        if isinstance(self.tensors, ByRows):
            return dict(digests(self.tensors.rows, self.outline(), title))
        return {name: tensor_digest(name, stored.tensor) for name, stored in self.tensors.items()}

    def outline(self) -> Outline:
        """`edgeqaf.checkpoint.QModel.outline` of its tensors; none is read where the file tells."""
        if isinstance(self.tensors, Outlined):
            return self.tensors.outline()
        return {name: kind_of(stored.tensor) for name, stored in self.tensors.items()}

    def quantized(self) -> Iterator[tuple[str, Stored, QTensor]]:
        """(logical name, where it is stored, its value) of each quantized tensor, sorted."""
        for name in sorted(self.tensors):
            stored = self.tensors[name]
            if isinstance(stored.tensor, QTensor):
                yield name, stored, stored.tensor


@dataclass(frozen=True)
class StoredAs:
    """What a format stores a grid in.

    type: the format's own name for it, e.g. "Q4_0".
    bits: that a weight takes there, scale and zero included; more than the grid's own where it is carried.
    """

    type: str
    bits: float

    def __str__(self) -> str:
        return f"{self.type}: {self.bits:g} bits a weight"


class Exporter(Protocol):
    """One artifact format. The module exposes an instance named ``exporter``."""

    filename: ClassVar[str]
    """Name of the file or folder inside a dist folder, e.g. ``model.gguf``."""

    def refuses(self, grid: Grid) -> str | None:
        """Why this format cannot carry ``grid`` exactly, or None if it can."""

    def stored_as(self, grid: Grid) -> StoredAs:
        """What the format stores a grid in that it does not refuse."""

    def plan(self, model: QModel) -> int:
        """Bytes that `export` will write, within a per cent; raises Refused for what it cannot carry."""

    def export(self, model: QModel, path: Path) -> Path:
        """Write the artifact at ``path``, which does not exist yet; return what a runtime opens.

        That is ``path``, or the first of several files beside it, named as `edgeqaf.splitnames.split_names` does.
        """

    def read_back(self, path: Path) -> Mapping[str, Stored]:
        """Every tensor of the artifact by logical name, strictly validated; raises Refused."""


class Form(Enum):
    """In which written form a kernel computes ``code * scale + zero`` (Zero.OFFSET grids; `HALF`: all)."""

    DECODED = "weights decoded to float32 first, then multiplied"
    FUSED = "scale * integer dot + zero * integer sum, rounded once"
    TWO_TERM = (
        "dot with (code - z) * scale and dot with (zero + z * scale), z the middle code, each rounded, then added"
    )
    HALF = "weights decoded to float32 and rounded to float16, as the activations are, then multiplied and added there"


@dataclass(frozen=True)
class Configuration:
    """One way to run a runtime, e.g. ONNX Runtime with fusion at accuracy level 4.

    int8_activations: the kernel rounds activations to 8 bits per block before multiplying.
    offset_form:      how it computes grids with a float zero; with `Form.HALF`, every grid.
    split_zero:       on other grids, codes are held unsigned, and the zero point times the activations'
                      sum is a term of its own, rounded for itself.
    exact_sums:       no sum rounds but at its end.
    program:          which of its format's programs it runs (`Artifact.program`).
    """

    name: str
    int8_activations: bool
    offset_form: Form
    split_zero: bool = False
    exact_sums: bool = False
    program: str = ""


@dataclass(frozen=True)
class Availability:
    """A runtime's version, or the reason why it is absent (then version is None).

    isa: by what it chooses its kernels; "" where that is this machine's instruction set.
    """

    version: str | None
    reason: str = ""
    isa: str = ""


@dataclass(frozen=True)
class RuntimeOptions:
    """What the user says about runtimes.

    llama_lib: folder with libllama.
    device:    where PyTorch runs.
    places:    folder with the runtimes that are elsewhere (`Runtime.elsewhere`).
    limits:    what a runtime's process may take.
    """

    llama_lib: Path | None = None
    threads: int = 1
    device: str = "cpu"
    places: Path | None = None
    limits: Limits = field(default_factory=Limits)


class Session(Protocol):
    """One artifact opened in one runtime under one configuration. Rows are in logical order."""

    def weights(self, stored: Stored, rows: slice = ALL) -> Floats:
        """The runtime's own decode of a tensor, or of some rows of a matrix: float32 [out, in]."""

    def linear(self, stored: Stored, x: Floats) -> Floats:
        """The runtime's own matmul: x [m, in] -> [m, out]."""

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after each token of one sequence: [len(tokens), vocab]."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, by the tokenizer that this runtime would use in deployment."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special tokens left out."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Greedy continuation of each prompt, in order, up to and without the end token."""


class Runtime(Protocol):
    """One inference engine. The module exposes an instance named ``runtime``."""

    reads: ClassVar[str | None]
    """The artifact format it loads: an exporter's registry key; None if it takes the integers of any."""

    configurations: ClassVar[tuple[Configuration, ...]]
    """Of every program that it runs; `fitting` has those for an artifact."""

    elsewhere: ClassVar[bool]
    """Whether it is outside this environment, and asked only if the user says where (`RuntimeOptions.places`)."""

    def availability(self, options: RuntimeOptions) -> Availability:
        """Whether it can run here; must not raise."""

    def open(
        self, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
    ) -> AbstractContextManager[Session]:
        """Load the artifact."""


def fitting(runtime: Runtime, artifact: Artifact) -> list[Configuration]:
    """The configurations of ``runtime`` in which it runs an artifact; none for one of another format."""
    if runtime.reads is None:
        return list(runtime.configurations)
    return [c for c in runtime.configurations if runtime.reads == artifact.format and c.program == artifact.program]
