"""A base from a file that is quantized already, or that llama.cpp quantizes: its integers are taken as they are."""

from pathlib import Path
from tempfile import TemporaryDirectory

from edgeqaf import checkpoint, plugins, prequantized
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import file_sha256
from edgeqaf.errors import UsageError
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.source import FloatModel

GGUF = ".gguf"


def is_import(model: Path) -> bool:
    """Whether ``model`` has integers of its own: a GGUF file, or a folder that another tool quantized."""
    return model.suffix == GGUF or prequantized.is_quantized(model)


def plan(model: Path, tokenizer: Path | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (grid, or "float32", and shape) of each tensor, no weight of which is read; raises Refused."""
    with TemporaryDirectory() as place:
        return _open(model, Path(place), tokenizer).outline()


def import_base(model: Path, out: Path, tokenizer: Path | None = None, *, force: bool = False) -> QModel:
    """Write the base folder ``out`` of a GGUF file or a quantized Hugging Face folder and return it.

    tokenizer: a Hugging Face folder to take a GGUF file's tokenizer from; by default it is made from the metadata.
    Raises Refused for what cannot be read, or not be taken over as it is.
    """
    with TemporaryDirectory() as place:
        opened = _open(model, Path(place), tokenizer)
        origin = {"imported": GGUF[1:] if model.suffix == GGUF else prequantized.method_of(model)}
        return checkpoint.save(opened, out, kind="base", parent=None, options=origin, force=force)


def _open(model: Path, place: Path, tokenizer: Path | None) -> QModel:
    """The model, its companion files written into ``place``."""
    if model.suffix != GGUF:
        if tokenizer is not None:
            raise UsageError(f"--tokenizer {tokenizer} is for GGUF files", f"leave it out: {model} has its own")
        return prequantized.open_base(model, place)
    opened: QModel = plugins.find("exporters", "gguf").open_base(model, place, tokenizer)
    return opened


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
