"""Runtimes that are changed themselves: a copy of the stock library with other code, loaded as any library is."""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from edgeqaf import plugins
from edgeqaf.protocols import Artifact, RuntimeOptions
from edgeqaf.qtensor import QTensor
from runtime_tests.selftest import registry
from runtime_tests.selftest.examine import Asked
from runtime_tests.selftest.looking import Look, Opening, Question, keep_quiet, look, plainly, ways
from runtime_tests.selftest.machine import Code
from runtime_tests.selftest.registry import Kind, Target
from runtime_tests.selftest.subjects import Subject, prepare

GRIDS = ("q4_0", "q4_1", "q8_0")  # one layer each: those whose kernels R3 knows
PLAIN = "as it is"


def subject(runtime: str) -> Subject:
    """What an engine is tried on."""
    format = plugins.find("runtimes", runtime).reads or "gguf"
    return Subject(runtime, format, (Target.LIBRARY, Target.SESSION), GRIDS)


def kinds(runtime: str) -> list[Kind]:
    """What can be wrong with it."""
    return [kind for kind in registry.every(Target.LIBRARY, Target.SESSION) if runtime in kind.among]


def ready(runtime: str, asked: Asked, place: Path) -> Iterator[tuple[Artifact, Mapping[str, QTensor]]]:
    """The artifact to be computed with, and its matrices."""
    keep_quiet()
    sound = prepare(subject(runtime), place, asked.seed)
    yield sound.artifact, dict(sound.model.quantized())


def try_out(
    runtime: str, kind: str | None, artifact: Artifact, expected: Mapping[str, QTensor], asked: Asked
) -> Iterator[list[Look]]:
    """The looks of every configuration, in an engine that has the defect ``kind``; None: as it is.

    No looks where there is nothing to change.
    """
    keep_quiet()
    found = registry.find(kind) if kind else None
    with tempfile.TemporaryDirectory(prefix="edgeqaf-self-test-") as folder:
        options: RuntimeOptions | None = asked.options
        if found and found.target is Target.LIBRARY:
            options = PATCHERS[runtime](found, Path(folder), asked.options)
        opening: Opening = found.apply if found and found.target is Target.SESSION else plainly
        yield list(_looks(runtime, artifact, expected, options, opening)) if options else []


def _looks(
    runtime: str, artifact: Artifact, expected: Mapping[str, QTensor], options: RuntimeOptions, opening: Opening
) -> Iterator[Look]:
    names = [name for name in expected if ".mlp." in name]  # every grid, in few matrices
    question = Question(names, expected, options, layers=True, logits=True)
    for name, configuration in ways(artifact, [runtime]):
        if opening(plugins.find("runtimes", name), artifact, configuration, options) is not None:
            yield look(artifact, name, configuration, question, opening)


def _llama_cpp(kind: Kind, place: Path, options: RuntimeOptions) -> RuntimeOptions | None:
    """A folder of llama.cpp's libraries in which ``kind`` was done to every one that computes."""
    from runtime_tests.ggml import library

    if options.llama_lib is None:
        files = {"libllama.so": library.package_file()}
    else:
        chosen = f"libggml-cpu-{_variant(options.llama_lib)}.so"
        files = {f.name: f for f in options.llama_lib.glob("*.so*")}
        files = {n: f for n, f in files.items() if not n.startswith("libggml-cpu-") or n == chosen}
    return replace(options, llama_lib=place) if _patched(kind, files, place) else None


def _onnxruntime(kind: Kind, place: Path, options: RuntimeOptions) -> RuntimeOptions | None:
    """A copy of the package before the one that is installed, for the rest of this process."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    target = place / package.name
    shutil.copytree(
        package, target, ignore=shutil.ignore_patterns("tools", "transformers", "quantization", "__pycache__")
    )
    files = {file.name: file for file in (target / "capi").glob("*.so*")}
    sys.path.insert(0, str(place))
    return options if _patched(kind, files, target / "capi") else None


PATCHERS = {"llama_cpp": _llama_cpp, "onnxruntime": _onnxruntime}


def _patched(kind: Kind, files: Mapping[str, Path], place: Path) -> int:
    """Write copies of the libraries into ``place``, changed; returns how much of them was."""
    count = 0
    for name, file in files.items():
        code = Code(file)
        count += kind.apply(code) if code.understood else 0
        code.write(place / name)
    return count


def _variant(folder: Path) -> str:
    """The CPU variant that would be loaded of a folder, as its library says in a process of its own."""
    import subprocess

    script = (
        f"from pathlib import Path; from runtime_tests.ggml.library import load; print(load(Path({str(folder)!r})).cpu)"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
