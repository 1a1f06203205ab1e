"""Finding and loading a llama.cpp: a folder that the user names, or the one inside the xllamacpp wheel.

A folder holds ``libggml-base``, ``libggml``, ``libllama`` and one or more ``libggml-cpu-VARIANT``
(as the npm packages ``@node-llama-cpp/*`` ship them); the variant with the best score for this CPU
is loaded unless one is named, and a process keeps it for life. A GPU's code, where the folder has it
(``libggml-vulkan``, ``libggml-cuda``), is loaded when it is asked for. xllamacpp has everything in one file. Symbols
are kept local to each library, so that both may live in one process; two folders may not, because the
system's loader would mix files of the same name.
"""

import ctypes
import importlib.metadata
import importlib.util
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeqaf.errors import RuntimeAbsent
from runtime_tests.ggml import structs

PACKAGE = "xllamacpp"
# In the order in which they depend on each other; the last also resolves the symbols of the others.
LIBRARIES = ("libggml-base*.so", "libggml-cpu.so", "libggml.so", "libggml.v*.so", "libllama.so", "libllama.v*.so")
_loaded: dict["Build", "Library"] = {}


@dataclass(frozen=True)
class Build:
    """Which llama.cpp: the folder that holds it (None: xllamacpp), and what of it is used.

    variant: of the CPU's code, e.g. "haswell"; "": the one that suits this processor best.
    gpu:     the GPU backend that computes, e.g. "vulkan", "cuda"; "": the CPU does.
    """

    folder: Path | None = None
    variant: str = ""
    gpu: str = ""


class Log:
    """Keeps llama.cpp's latest error lines, and keeps it from writing to stderr."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=8)
        self._keeping = False
        self.callback = structs.LogCallback(self._take)  # must outlive the library's use of it

    def _take(self, level: int, text: bytes | None, _: object) -> None:
        if level != structs.LOG_CONTINUED:
            self._keeping = level == structs.LOG_ERROR
        if self._keeping and text and text.strip():
            self._lines.append(text.decode("utf-8", "replace").strip())

    def clear(self) -> None:
        self._lines.clear()

    def message(self) -> str:
        """The first error since `clear`: the later ones only say that something failed."""
        return self._lines[0] if self._lines else "no reason given"


@dataclass(frozen=True)
class Library:
    """A loaded llama.cpp.

    c:       its functions, typed by `structs.SIGNATURES`.
    release: llama.cpp's and ggml's version and commit.
    cpu:     the variant of the CPU's kernels, or the features they are built with.
    context: the layout of ``llama_context_params`` that fits it.
    device:  its CPU device.
    log:     what it said last.
    gpu:     the GPU that computes, or None.
    """

    c: Any
    release: str
    cpu: str
    context: type[structs.ParamsStruct]
    device: int
    log: Log
    gpu: int | None = None

    @property
    def version(self) -> str:
        """``release``, and the processor that computes."""
        if self.gpu is None:
            return f"{self.release}, CPU {self.cpu}"
        name, card = (f(self.gpu).decode() for f in (self.c.ggml_backend_dev_name, self.c.ggml_backend_dev_description))
        return f"{self.release}, {name} {card}"

    def proc(self, name: str, kind: Any) -> Any:
        """The optional function ``name`` of the CPU backend as a ``kind``, or None."""
        registry = self.c.ggml_backend_dev_backend_reg(self.device)
        address = self.c.ggml_backend_reg_get_proc_address(registry, name.encode())
        return kind(address) if address else None


def load(folder: Path | None, variant: str = "", gpu: str = "") -> Library:
    """The llama.cpp of a `Build`; loaded once per process.

    Raises RuntimeAbsent when there is none, none that this binding understands, or not that part of it.
    """
    build = Build(folder.resolve() if folder else None, variant, gpu)
    if build not in _loaded:
        others = [other.folder for other in _loaded if other.folder is not None]
        if build.folder is not None and others:
            raise RuntimeAbsent(
                f"{build.folder}: this process already uses the llama.cpp in {others[0]}",
                "use one libllama folder per process",
            )
        _loaded[build] = _open(build)
    return _loaded[build]


def _open(build: Build) -> Library:
    folder = build.folder
    try:
        files = _folder_files(folder) if folder else [_package_file()]
        c = [ctypes.CDLL(str(file)) for file in files][-1]
        for name, (result, arguments) in structs.SIGNATURES.items():
            function = getattr(c, name)
            function.restype, function.argtypes = result, arguments
        context, log = _context_layout(c), Log()
        c.llama_log_set(log.callback, None)  # ggml's too
        variant = _load_variant(c, folder, build.variant)
        gpu = _load_gpu(c, folder, build.gpu) if build.gpu else None
        c.llama_backend_init()
        cpu = c.ggml_backend_dev_by_type(structs.DEVICE_CPU)
        library = Library(c, _release(c, folder), variant, context, cpu, log, gpu)
        return replace(library, cpu=variant or _features(library))
    except (OSError, AttributeError, ImportError, ValueError) as error:  # ValueError: a null pointer read
        raise RuntimeAbsent(
            f"{folder or PACKAGE}: {error}", "use a libllama folder for this machine, or install edgeqaf[llama]"
        ) from None


def _release(c: Any, folder: Path | None) -> str:
    package = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}, " if folder is None else ""
    llama, ggml, commit = (f().decode() for f in (c.llama_version, c.ggml_version, c.ggml_commit))
    return f"{package}llama.cpp {llama}, ggml {ggml} (commit {commit})"


def _package_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    files = sorted(Path(next(iter(places))).glob(f"{PACKAGE}*.so")) if places else []
    if not files:
        raise RuntimeAbsent(
            f"no llama.cpp: the package {PACKAGE} is not installed and no libllama folder is named",
            "pip install 'edgeqaf[llama]', or name a folder with libllama",
        )
    return files[0]


def _folder_files(folder: Path) -> list[Path]:
    files = [file for pattern in LIBRARIES for file in sorted(folder.glob(pattern))]
    if not any(file.name.startswith("libllama") for file in files):
        raise RuntimeAbsent(
            f"{folder} has no libllama", "name the folder that holds libllama.so, libggml.so and libggml-base.so"
        )
    return files


def _context_layout(c: Any) -> type[structs.ParamsStruct]:
    """The layout of llama_context_params whose fields all read as their defaults; checks the others too."""
    tokens = (ctypes.c_int32 * 7)()
    batch = c.llama_batch_get_one(tokens, 7)
    traits = c.ggml_get_type_traits(structs.TYPE_Q4_0).contents
    fits = (
        c.llama_model_default_params().is_default()
        and (batch.n_tokens, ctypes.addressof(batch.token.contents)) == (7, ctypes.addressof(tokens))
        and not any((batch.embd, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits))
        and (traits.type_name, traits.block, traits.type_size, traits.is_quantized) == (b"q4_0", 32, 18, True)
    )
    for layout in structs.CONTEXT_LAYOUTS if fits else ():
        c.llama_context_default_params.restype = layout
        if c.llama_context_default_params().is_default():
            c.llama_init_from_model.restype = ctypes.c_void_p
            c.llama_init_from_model.argtypes = [ctypes.c_void_p, layout]
            return layout
    raise RuntimeAbsent(
        f"llama.cpp {c.llama_version().decode()} (ggml {c.ggml_version().decode()}) lays out its structs in a way "
        "that this version of edgeqaf does not know",
        "use the xllamacpp version that edgeqaf[llama] names, or a libllama folder of about that age",
    )


def _load_variant(c: Any, folder: Path | None, named: str) -> str:
    """Register a CPU variant of ``folder``, the best if none is named; its name, "" if the CPU code is built in."""
    if c.ggml_backend_dev_by_type(structs.DEVICE_CPU):
        return ""
    files = sorted(folder.glob(f"libggml-cpu-{named}.so" if named else "libggml-cpu*.so")) if folder else []
    scores = {file: _score(file) for file in files}
    best = max(files, key=lambda file: scores[file], default=None)
    if named and best and not scores[best]:
        raise RuntimeAbsent(
            f"this processor lacks instructions that llama.cpp's code for {named} needs", "verify on one that has them"
        )
    if best is None or not scores[best] or not c.ggml_backend_load(str(best).encode()):
        raise RuntimeAbsent(
            f"{folder}: none of its {len(files)} libggml-cpu{named and '-'}{named} variants runs on this CPU",
            "use a llama.cpp built for this machine",
        )
    return best.stem.removeprefix("libggml-cpu-")


def _load_gpu(c: Any, folder: Path | None, name: str) -> int:
    """Register the backend ``name`` of ``folder``, and return its first device."""
    files = sorted(folder.glob(f"libggml-{name}*.so")) if folder else []
    if not files:
        raise RuntimeAbsent(f"{folder or PACKAGE} has no libggml-{name}", "name a llama.cpp folder that has it")
    registry = c.ggml_backend_load(str(files[0]).encode())
    if not registry or not c.ggml_backend_reg_dev_count(registry):
        raise RuntimeAbsent(f"{files[0]} finds no device", "install the driver of the GPU")
    device: int = c.ggml_backend_reg_dev_get(registry, 0)
    return device


def _score(variant: Path) -> int:
    """How well ``variant`` suits this CPU; 0 if it cannot run."""
    score = getattr(ctypes.CDLL(str(variant)), "ggml_backend_score", None)
    return int(score()) if score else 1  # a build for one machine keeps no score


def _features(library: Library) -> str:
    listed = library.proc("ggml_backend_get_features", structs.Features)
    names: list[str] = []
    registry = library.c.ggml_backend_dev_backend_reg(library.device)
    for feature in listed(registry) if listed else ():
        if not feature.name:
            break
        names.append(feature.name.decode())
    return " ".join(names) or "unknown"
