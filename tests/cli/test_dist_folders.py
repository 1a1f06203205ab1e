"""A dist folder that was touched is caught, by name, before any runtime is asked; an absent runtime never passes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import cut, edit, flip

Copy = Callable[[Path], Path]
GGUF, ONNX, DATA = "model.gguf", "onnx/model.onnx", "onnx/model.onnx.data"


@pytest.fixture
def no_runtime(tmp_path: Path) -> tuple[object, ...]:
    """Options under which verify asks no runtime: files and weights are checked all the same."""
    empty = tmp_path / "no library"
    empty.mkdir()
    return "--runtime", "llama.cpp", "--llama-lib", empty


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "GGUF cut": (lambda d: cut(d / GGUF), f"{GGUF}: "),
    "GGUF cut by a byte": (lambda d: (d / GGUF).write_bytes((d / GGUF).read_bytes()[:-1]), "ends at byte"),
    "GGUF magic": (lambda d: flip(d / GGUF, 0), f"{GGUF}: "),
    "no GGUF": (lambda d: (d / GGUF).unlink(), GGUF),
    "GGUF is a folder": (lambda d: [(d / GGUF).unlink(), (d / GGUF).mkdir()], GGUF),
    "ONNX data cut": (lambda d: cut(d / DATA), f"{DATA} has"),
    "ONNX graph cut": (lambda d: cut(d / ONNX), ONNX),
    "no ONNX data": (lambda d: (d / DATA).unlink(), DATA),
    "no ONNX": (lambda d: shutil.rmtree(d / "onnx"), "onnx"),
    "receipt cut": (lambda d: cut(d / "edgeqaf.json"), "edgeqaf.json is not readable JSON"),
    "receipt of another version": (lambda d: edit(d / "edgeqaf.json", format=9), "is format 9"),
    "receipt of a model": (lambda d: edit(d / "edgeqaf.json", kind="base"), "is a base folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_artifact_is_refused(
    fault: str, shell: Any, copy: Copy, road: Any, no_runtime: tuple[object, ...]
) -> None:
    spoil, says = FAULTS[fault]
    dist = copy(road.dist)
    spoil(dist)
    shell.refused(3, "verify", dist, *no_runtime, says=says)


@pytest.mark.parametrize("file", [GGUF, DATA])
def test_a_flipped_bit_fails_and_its_tensor_is_named(
    file: str, shell: Any, copy: Copy, road: Any, no_runtime: tuple[object, ...]
) -> None:
    dist = copy(road.dist)
    flip(dist / file, -1000)
    result = shell.run("verify", dist, *no_runtime, "--json")
    assert result.code == 4
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 2
    said = result.json()
    assert not said["passed"]
    wrong = {name for check in said["checks"] for name in check["wrong"] if check["rung"] == "R0"}
    assert file in wrong
    assert len([name for name in wrong if name.endswith(".weight")]) == 1
    if file == GGUF:
        shell.refused(4, "eval", dist, "--data", road.data, "--rows", 1, says=f"{GGUF} reads back as root")


def test_an_absent_runtime_is_named_and_never_passes_for_present(
    shell: Any, copy: Copy, road: Any, no_runtime: tuple[object, ...]
) -> None:
    dist = copy(road.dist)
    said = shell.json("verify", dist, *no_runtime)
    assert [c["verdict"] for c in said["checks"] if c["subject"].startswith("llama_cpp")] == ["absent"]
    for item in ("llama.cpp", "R2"):
        result = shell.run("verify", dist, *no_runtime, "--require", item)
        assert result.code == 6
        assert "no library has no libllama" in result.err.splitlines()[0]
    result = shell.run("verify", dist, *no_runtime, "--require", "onnxruntime")
    assert result.code == 6
    assert "--runtime left it out" in result.err
    shell.refused(6, "eval", dist, "--data", road.data, *no_runtime, says="no library has no libllama")


def test_a_library_that_is_none_is_absent_too(shell: Any, copy: Copy, road: Any) -> None:
    dist = copy(road.dist)
    Path("junk").mkdir()
    for name in ("libllama.so", "libggml.so", "libggml-base.so"):
        Path("junk", name).write_text("junk")
    result = shell.run("verify", dist, "--runtime", "llama.cpp", "--llama-lib", "junk", "--require", "llama.cpp")
    assert result.code == 6
    assert "junk" in result.err.splitlines()[0]


def test_verify_holds_against_another_model(shell: Any, copy: Copy, road: Any) -> None:
    dist = copy(road.dist)
    result = shell.run("verify", dist, "--runtime", "torch", "--against", road.base, "-o", "report.json", "--json")
    assert result.code == 4
    wrong = {name for check in result.json()["checks"] for name in check["wrong"]}
    assert len(wrong) == 14  # every tuned tensor moved
    assert Path("report.json").is_file()
    assert not (dist / "verify.json").exists()


def test_a_deployment_that_goes_wrong_leaves_no_file(shell: Any, copy: Copy, road: Any) -> None:
    dist = copy(road.dist)
    flip(dist / GGUF, 100)
    before = shell.files()
    assert shell.run("deploy", dist, "--to", "card").code == 4
    assert {name for name in shell.files().keys() - before.keys() if Path(name).is_file()} == set()
