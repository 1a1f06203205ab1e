"""A base from a file that is quantized already: its integers are taken as they are."""

from pathlib import Path
from tempfile import TemporaryDirectory

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel

GGUF = ".gguf"


def plan(file: Path, tokenizer: Path | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (grid, or "float32", and shape) of each tensor of a GGUF file, from its header; raises Refused."""
    with TemporaryDirectory() as folder:
        return dict(plugins.find("exporters", "gguf").open_base(file, Path(folder), tokenizer).outline())


def import_base(file: Path, out: Path, tokenizer: Path | None = None, *, force: bool = False) -> QModel:
    """Write the base folder ``out`` of a GGUF file and return it.

    tokenizer: a Hugging Face folder to take the tokenizer from; by default it is made from the file's metadata.
    Raises Refused for what the exporter of the format cannot read.
    """
    with TemporaryDirectory() as folder:
        model = plugins.find("exporters", "gguf").open_base(file, Path(folder), tokenizer)
        return checkpoint.save(model, out, kind="base", parent=None, options={"imported": "gguf"}, force=force)
