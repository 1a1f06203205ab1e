"""What an artifact states beside its tensors: hyperparameters, tokenizer, program. And what it ought to state.

Digests cover tensors. That a file is to be run with another rotation base or another end token shows in no weight, so
these statements are derived again, by the exporter's own code, from the config and tokenizer files that lie beside the
artifact, and compared one by one.
"""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from edgeqaf import __version__
from edgeqaf.checkpoint import QModel
from edgeqaf.companions import CONFIG
from edgeqaf.digest import Tensor
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.jsonfile import read_json
from edgeqaf.protocols import Artifact, Stored
from edgeqaf.runs import ByRows, Outline, Rows, rows_in

if TYPE_CHECKING:
    from pathlib import Path

Statements = Mapping[str, str]  # what is stated, by its name in the format -> SHA-256


@runtime_checkable
class States(Protocol):
    """An exporter (`edgeqaf.protocols.Exporter`) whose artifacts say how they are to be run."""

    tools: ClassVar[tuple[str, ...]]
    """Packages on whose versions depends what it writes, beside edgeqaf's."""

    def stated(self, path: "Path") -> Statements:
        """Everything that an artifact says, read without trust in it; raises Refused."""

    def restated(self, model: QModel) -> Statements:
        """Everything that `export` of this model would say; raises Refused as that does."""

    def forge(self, path: "Path", change: Callable[[Any], object]) -> None:
        """Change in place what an artifact says, as one who wants to be believed: sealed anew.

        change: is given the format's own form of it (a GGUF file's metadata by key, an onnx.ModelProto) to alter.
        """


class Logical(Mapping[str, Tensor]):
    """Tensors by logical name alone, of those that a file stores, each read when it is asked for."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact, self._stored = artifact, artifact.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # the mixin's would read the tensor

    def __getitem__(self, name: str) -> Tensor:
        stored: Stored = self._stored[name]
        return stored.tensor

    def rows(self, name: str) -> Rows:
        """`edgeqaf.runs.ByRows`."""
        return self._stored.rows(name) if isinstance(self._stored, ByRows) else rows_in(self[name], name)

    def outline(self) -> Outline:
        """`edgeqaf.runs.Outlined`."""
        return self._artifact.outline()


def model_of(artifact: Artifact, asked: Mapping[str, Any]) -> QModel:
    """The model that an artifact ought to be the export of: its tensors, with config and tokenizer of its reference.

    asked: what the receipt says was asked of the export (`ExportOptions.recorded`). A tokenizer that came from a
    third file cannot be had again; it is taken from the artifact itself.
    """
    options = ExportOptions(onnx=OnnxOptions(**asked.get("onnx", {})))
    if asked.get(artifact.format, {}).get("tokenizer_from"):
        options = replace(options, tokenizer_from=artifact.path)
    return QModel(read_json(artifact.reference / CONFIG), Logical(artifact), artifact.reference, asked=options)


def versions(exporter: object) -> dict[str, str]:
    """What an exporter's statements depend on beside the model: versions by package, edgeqaf's first."""
    tools = exporter.tools if isinstance(exporter, States) else ()
    return {"edgeqaf": __version__} | {tool: importlib.metadata.version(tool) for tool in tools}
