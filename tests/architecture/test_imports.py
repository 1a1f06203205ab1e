"""Who may import whom: a light core, leaves that do not know each other, and nothing heavy until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edgeqaf import plugins

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTS = ("edgeqaf", "exporters", "runtime_tests", "devices")
# The most specific folder decides which of the four roots its files may import, at any depth.
EDGES = {
    "edgeqaf": {"edgeqaf"},
    "edgeqaf/commands": {"edgeqaf", "exporters", "runtime_tests", "devices"},
    "exporters": {"edgeqaf", "exporters"},
    "runtime_tests": {"edgeqaf", "runtime_tests"},
    "devices": {"edgeqaf", "devices"},
}
# These read, check and convert a model where there may be no torch: whatever is heavy, they import in a function.
CORE = (
    "grid", "qtensor", "digest", "staging", "plugins", "checkpoint", "protocols", "report", "source", "quantize",
    "errors", "packing", "jsonfile", "shards", "importing", "prequantized", "imported",
)  # fmt: skip
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "gguf", "onnx_ir", "onnxscript", "accelerate", "peft"}


class Import(NamedTuple):
    file: Path
    line: int
    module: str
    top: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(CHECKOUT)}:{self.line} imports {self.module}"


def files(folder: str) -> list[Path]:
    return sorted((CHECKOUT / folder).rglob("*.py"))


def core_files() -> list[Path]:
    named = [CHECKOUT / "edgeqaf" / f"{name}.py" for name in CORE]
    return [*named, *files("edgeqaf/grids"), *files("edgeqaf/quantizers"), *files("edgeqaf/importers")]


def imports(file: Path) -> Iterator[Import]:
    """Every import statement of ``file``; ``top`` where it runs when the file is imported."""
    tree = ast.parse(file.read_text("utf-8"))
    lazy = {
        inner
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
            names = [f"{names[0]}.{alias.name}" for alias in node.names] if names[0] in ROOTS else names
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, node not in lazy)


def root(module: str) -> str:
    return module.split(".")[0]


def allowed(file: Path) -> set[str]:
    folder = file.relative_to(CHECKOUT).parent
    return next(EDGES[str(f)] for f in [folder, *folder.parents] if str(f) in EDGES)


def test_the_roots_import_each_other_only_along_the_allowed_edges():
    wrong = [
        i for r in ROOTS for file in files(r) for i in imports(file)
        if root(i.module) in ROOTS and root(i.module) not in allowed(file)
    ]  # fmt: skip
    assert not wrong, "\n" + "\n".join(f"{i}; allowed: {', '.join(sorted(allowed(i.file)))}" for i in wrong)


def test_no_import_is_relative():
    wrong = [i for r in ROOTS for file in files(r) for i in imports(file) if i.module.startswith(".")]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_nothing_of_the_product_imports_its_tests_or_examples():
    foreign = ("tests", "examples", "pytest", "hypothesis")
    wrong = [i for r in ROOTS for file in files(r) for i in imports(file) if root(i.module) in foreign]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_the_core_imports_nothing_heavy_at_module_level():
    wrong = [i for file in core_files() for i in imports(file) if i.top and root(i.module) in HEAVY]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_plugins_of_one_kind_do_not_know_each_other():
    wrong = []
    for kind, (package, _) in plugins.KINDS.items():
        for name in plugins.names(kind):
            place = CHECKOUT / package.replace(".", "/") / name
            own = files(str(place.relative_to(CHECKOUT))) if place.is_dir() else [place.with_suffix(".py")]
            siblings = {f"{package}.{other}" for other in plugins.names(kind) if other != name}
            found = [i for file in own for i in imports(file)]
            wrong += [i for i in found if any(f"{i.module}.".startswith(f"{s}.") for s in siblings)]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_the_engines_do_not_know_each_other():
    """What several need of emulating and of asking lies beside them."""
    engines = ("ggml", "onnx")
    wrong = [
        i for engine in engines for file in files(f"runtime_tests/{engine}") for i in imports(file)
        if any(f"{i.module}.".startswith(f"runtime_tests.{other}.") for other in engines if other != engine)
    ]  # fmt: skip
    assert not wrong, "\n" + "\n".join(map(str, wrong))


def loaded_by(script: str) -> set[str]:
    """The heavy packages in ``sys.modules`` after ``script`` ran in a process of its own."""
    report = f"import sys; print(); print(*sorted({HEAVY!r} & {{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\n{report}"], capture_output=True, text=True, check=False, cwd=CHECKOUT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_core_loads_nothing_heavy_even_through_what_it_imports():
    modules = [str(f.relative_to(CHECKOUT).with_suffix("")).replace("/", ".") for f in core_files()]
    assert loaded_by("\n".join(f"import {m.removesuffix('.__init__')}" for m in modules)) == set()


@pytest.mark.parametrize(
    "script",
    ["import edgeqaf", "from edgeqaf.cli import run; assert run(['--help']) == 0",
     "from edgeqaf.cli import run; assert run(['--version']) == 0",
     "from edgeqaf.cli import run; assert run(['quantize', '--help']) == 0",
     "from edgeqaf.cli import run; assert run(['quantize', 'absent', '-o', 'absent-too']) == 3"],
    ids=["import", "--help", "--version", "quantize --help", "quantize refuses"],
)  # fmt: skip
def test_help_and_refusals_load_nothing_heavy(script):
    assert loaded_by(script) == set()


@pytest.mark.parametrize("package", ["exporters", "runtime_tests", "devices"])
def test_the_other_roots_are_light_until_something_of_them_is_used(package):
    assert loaded_by(f"import {package}") == set()


def test_this_test_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CHECKOUT", tmp_path)
    (tmp_path / "exporters").mkdir()
    file = tmp_path / "exporters" / "x.py"
    file.write_text(
        "import torch, a.b\nfrom runtime_tests import probes\nfrom . import y\nclass C:\n    import gguf\n"
        "def f():\n    from devices.fit import z\nif True:\n    import onnx.helper as h\nfrom edgeqaf import commands\n"
    )
    found = {(i.module, i.top) for i in imports(file)}
    assert found == {
        ("torch", True), ("a.b", True), ("runtime_tests.probes", True), (".", True), ("gguf", True),
        ("devices.fit", False), ("onnx.helper", True), ("edgeqaf.commands", True),
    }  # fmt: skip
    assert allowed(file) == {"edgeqaf", "exporters"}
