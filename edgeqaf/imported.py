"""A base from a file that is quantized already, or that llama.cpp quantizes: its integers are taken as they are."""

from pathlib import Path
from tempfile import TemporaryDirectory

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import file_sha256
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.source import FloatModel

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


def quantize_by_llama_cpp(
    folder: Path, out: Path, kind: str, options: RuntimeOptions, *, pure: bool = False, imatrix: Path | None = None,
    force: bool = False,
) -> QModel:  # fmt: skip
    """Write the base folder ``out``: the float model in ``folder``, quantized by llama.cpp to its file type ``kind``.

    pure: one block type for all matrices, instead of llama.cpp's mix. imatrix: what llama-imatrix wrote.
    The float file (4 bytes a weight) and the quantized one lie beside ``out`` for the time.
    """
    exporter, runtime = plugins.find("exporters", "gguf"), plugins.find("runtimes", "llama_cpp")
    source = FloatModel(folder)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.absolute().parent, prefix=".llama_cpp.") as place:
        floats, file, companions = (Path(place) / name for name in ("floats.gguf", "model.gguf", "companions"))
        exporter.export_floats(QModel(source.config, source, folder), floats)
        version = runtime.quantize(floats, file, kind, options, pure=pure, imatrix=imatrix)
        floats.unlink()
        companions.mkdir()
        recorded = {"quantizer": "llama_cpp", "type": kind.upper(), "pure": pure, "version": version}
        if imatrix is not None:
            recorded["imatrix"] = file_sha256(imatrix)
        model = exporter.open_base(file, companions, source=folder)
        return checkpoint.save(model, out, kind="base", parent=None, options=recorded, force=force)
