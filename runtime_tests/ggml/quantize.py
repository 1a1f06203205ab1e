"""llama.cpp's own quantizer: a float GGUF file in, one of any of its file types out.

It runs in a child process, because it asserts on what it does not like. An importance matrix (the GGUF file that
llama-imatrix writes) is read here and handed over as arrays, as llama-quantize does (tools/quantize/quantize.cpp,
load_imatrix): mean squares of the activations of each input, sums over tokens divided by their counts.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeqaf.child import stream
from edgeqaf.errors import Refused, RuntimeAbsent, UsageError
from runtime_tests.ggml import structs
from runtime_tests.ggml.library import load

SUMS, COUNTS = ".in_sum2", ".counts"


class ImatrixData(ctypes.Structure):
    """``struct llama_model_imatrix_data``; a null name ends the list."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


# What else it has (``ftype``, and types that count all types) differs between releases in value, not in place.
QuantizeParams = type(
    "QuantizeParams",
    (structs.ParamsStruct,),
    {
        "_fields_": [
            ("nthread", ctypes.c_int32),
            ("ftype", ctypes.c_int),
            ("output_tensor_type", ctypes.c_int),
            ("token_embedding_type", ctypes.c_int),
            ("allow_requantize", ctypes.c_bool),
            ("quantize_output_tensor", ctypes.c_bool),
            ("only_copy", ctypes.c_bool),
            ("pure", ctypes.c_bool),
            ("keep_split", ctypes.c_bool),
            ("imatrix", ctypes.c_void_p),
            ("kv_overrides", ctypes.c_void_p),
            ("tt_overrides", ctypes.c_void_p),
            ("prune_layers", ctypes.c_void_p),
            structs.TAIL,
        ],
        "defaults": {
            "nthread": 0, "allow_requantize": False, "quantize_output_tensor": True, "only_copy": False, "pure": False,
            "keep_split": False, "imatrix": None, "kv_overrides": None, "tt_overrides": None, "prune_layers": None,
        },
    },
)  # fmt: skip


def file_types() -> dict[str, int]:
    """What llama.cpp calls a file's type (Q4_K_M) -> its number (llama.h, enum llama_ftype)."""
    from gguf import LlamaFileType

    prefix = "MOSTLY_"
    return {kind.name.removeprefix(prefix): int(kind) for kind in LlamaFileType if kind.name.startswith(prefix)}


def quantize(
    folder: Path | None, source: Path, target: Path, kind: str, *, threads: int, pure: bool = False,
    imatrix: Path | None = None,
) -> str:  # fmt: skip
    """Write ``target``, ``source`` quantized to the file type ``kind``; return llama.cpp's version.

    folder: with libllama, or None for xllamacpp's. pure: one type for all matrices, instead of llama.cpp's mix.
    Raises UsageError for an unknown type, Refused for what llama.cpp refuses.
    """
    known = file_types()
    name = kind.upper()
    if name not in known:
        raise UsageError(f"llama.cpp has no file type {kind!r}", f"known: {', '.join(sorted(known))}")
    means = {} if imatrix is None else read_imatrix(imatrix)
    arguments = folder, str(source), str(target), known[name], threads or os.cpu_count() or 1, pure, means
    version: str = next(stream(f"llama.cpp's quantizer, {name}", _quantize, *arguments))
    return version


def read_imatrix(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Tensor name in the file -> float32 [in]: the mean square of each input. Refused for another kind of file."""
    from gguf import GGUFReader

    try:
        tensors = {tensor.name: tensor.data.astype(np.float32) for tensor in GGUFReader(path).tensors}
    except (OSError, ValueError, IndexError) as error:
        raise Refused(f"{path}: {error}", "pass the .gguf file that llama-imatrix wrote") from None
    found = {name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)}
    if not found or any(name + COUNTS not in tensors for name in found):
        raise Refused(f"{path} holds no importance matrix", "pass the .gguf file that llama-imatrix wrote")
    means = {}
    for name in sorted(found):
        sums, counts = tensors[name + SUMS], tensors[name + COUNTS].reshape(-1, 1)
        if counts.size != 1:
            raise Refused(f"{path}: {name} has {counts.size} experts", "models with experts are not supported")
        means[name] = (sums.reshape(-1) / counts[0, 0]).astype(np.float32)
    return means


def _quantize(
    folder: Path | None, source: str, target: str, file_type: int, threads: int, pure: bool,
    means: Mapping[str, np.ndarray[Any, Any]],
) -> Iterator[str]:  # fmt: skip
    library = load(folder)
    function, defaults = (getattr(library.c, f"llama_model_quantize{name}", None) for name in ("", "_default_params"))
    if function is None or defaults is None:
        raise RuntimeAbsent(
            f"{library.version} has no quantizer (the package xllamacpp leaves it out)",
            "name a folder with libllama: --llama-lib FOLDER (npm pack @node-llama-cpp/linux-x64 has one)",
        )
    defaults.restype, defaults.argtypes = QuantizeParams, []
    function.restype, function.argtypes = ctypes.c_uint32, [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(QuantizeParams)
    ]  # fmt: skip
    params = defaults()
    if not params.is_default():
        raise RuntimeAbsent(
            f"{library.version} lays out its quantizer's options in a way that this version of edgeqaf does not know",
            "use the xllamacpp version that edgeqaf[llama] names",
        )
    params.nthread, params.ftype, params.pure = threads, file_type, pure
    entries = (ImatrixData * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.name, entry.data, entry.size = name.encode(), pointer, values.size
    if means:
        params.imatrix = ctypes.addressof(entries)
    if function(source.encode(), target.encode(), ctypes.byref(params)):
        raise Refused(f"llama.cpp's quantizer: {library.log.message()}", "choose another type")
    yield library.version
