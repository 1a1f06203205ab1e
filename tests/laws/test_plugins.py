"""The file name is the registry key; names are forgiving, and never ambiguous, foreign or silent."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from edgeqaf import plugins
from edgeqaf.errors import ShadowedPackage, UsageError

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_file_of_a_kind_is_an_entry_and_exposes_its_name(kind):
    package, attribute = plugins.KINDS[kind]
    folder = CHECKOUT / package.replace(".", "/")
    files = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
    names = plugins.names(kind)
    assert names == sorted(name for name in files if not name.startswith("_"))
    assert names
    for name in names:
        assert plugins.find(kind, name) is getattr(importlib.import_module(f"{package}.{name}"), attribute)


def test_listing_imports_no_entry():
    script = "import sys; from edgeqaf import plugins; [plugins.names(k) for k in plugins.KINDS]; " + (
        "print(*sorted(m for m in sys.modules if m.startswith(tuple(p + '.' for p, _ in plugins.KINDS.values()))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("kind", "spelling", "key"),
    [
        ("grids", "q4_0", "q4_0"), ("grids", "Q4_0", "q4_0"), ("grids", "q4-0", "q4_0"), ("grids", "q4.0", "q4_0"),
        ("grids", "q8", "q8_0"), ("runtimes", "llama.cpp", "llama_cpp"), ("runtimes", "llama", "llama_cpp"),
        ("runtimes", "torch", "torch_cpu"), ("runtimes", "ONNXRuntime", "onnxruntime"), ("exporters", "GGUF", "gguf"),
        ("adapters", "lora", "lora"),
    ],
)  # fmt: skip
def test_dots_dashes_case_and_a_unique_beginning_are_understood(kind, spelling, key):
    assert plugins.resolve(kind, spelling) == key


def test_a_whole_name_wins_over_a_longer_one_that_begins_with_it(monkeypatch):
    monkeypatch.setattr(plugins, "names", lambda kind: ["lora", "lora_plus"])
    assert plugins.resolve("adapters", "lora") == "lora"
    assert plugins.resolve("adapters", "lora_") == "lora_plus"


@pytest.mark.parametrize("name", ["q4", "q", "", "_", "q4_0_", "../q4_0", "q4_0/..", "grids.q4_0", "q4_k_m"])
def test_what_is_unknown_or_ambiguous_is_refused_with_the_known_names(name):
    with pytest.raises(UsageError) as refused:
        plugins.find("grids", name)
    assert refused.value.cause == f"unknown grid {name!r}"
    assert refused.value.remedy.endswith("known: " + ", ".join(plugins.names("grids")))


@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [("grids", "q4_9", "q4_"), ("runtimes", "onxruntime", "onnxruntime"), ("exporters", "ggfu", "gguf"),
     ("adapters", "lorra", "lora"), ("commands", "quantise", "quantize")],
)  # fmt: skip
def test_the_nearest_spelling_is_suggested(kind, name, near):
    with pytest.raises(UsageError, match=f"unknown {kind[:-1]} '{name}'") as refused:
        plugins.find(kind, name)
    assert refused.value.remedy.startswith(f"did you mean {near}")


@pytest.mark.parametrize("form", ["package", "module"])
@pytest.mark.parametrize(("package", "kind"), [("exporters", "exporters"), ("runtime_tests", "runtimes")])
def test_a_foreign_package_of_the_same_name_is_refused_by_place(tmp_path, package, kind, form):
    if form == "package":
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "runtimes").mkdir()
        (tmp_path / package / "runtimes" / "__init__.py").touch()
    else:
        (tmp_path / f"{package}.py").touch()
    script = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(CHECKOUT)!r}]
from edgeqaf import plugins
from edgeqaf.errors import ShadowedPackage
for ask in (plugins.names, lambda kind: plugins.find(kind, "gguf")):
    try:
        ask({kind!r})
    except ShadowedPackage as error:
        print(error.exit_code, error, error.remedy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"{ShadowedPackage.exit_code} the package '{package}")
        assert "is not edgeqaf's own" in line
        assert form == "module" or str(tmp_path) in line
