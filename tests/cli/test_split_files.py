"""A GGUF model split over several files, down the whole road: one artifact to every command."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import edit, flip

from edgeqaf import staging
from edgeqaf.jsonfile import read_json

Copy = Callable[[Path], Path]
SPLIT = ("--split-max-size", "1M")


@pytest.fixture(scope="module")
def parts(road: Any, command: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of the road's model in a dist folder, of which ONNX is the other artifact; read-only."""
    folder = tmp_path_factory.mktemp("split") / "dist"
    result = command("export", road.merged, "-o", folder, "--format", "gguf,onnx", *SPLIT)
    assert (result.code, result.err) == (0, "")
    found = sorted(folder.glob("*.gguf"))
    assert [path.name for path in found] == [f"model-{i:05}-of-00002.gguf" for i in (1, 2)]
    assert f"{found[0]}: " in result.out
    assert " MB in 2 files, reads back" in result.out
    assert "no Modelfile: Ollama takes no split GGUF" in result.out
    return found


def test_a_dry_run_says_how_many_files(shell: Any, road: Any, parts: list[Path]) -> None:
    line = ("export", road.merged, "-o", "out", "--format", "gguf", *SPLIT, "--dry-run")
    sizes = [path.stat().st_size for path in parts]
    assert f"gguf: 2 files, the largest of {max(sizes) / 1e6:.1f} MB" in shell.ok(*line).out
    assert shell.json(*line) == {"bytes": {"gguf": sum(sizes)}, "parts": {"gguf": sizes}}


def test_the_receipt_has_every_file_and_the_card_the_first(parts: list[Path]) -> None:
    dist = parts[0].parent
    receipt, card = read_json(dist / "edgeqaf.json"), (dist / "README.md").read_text()
    assert receipt["artifacts"] == {"gguf": parts[0].name, "onnx": "onnx"}
    assert {path.name for path in parts} <= set(receipt["files"])
    assert f"llama-server -m {parts[0].name} " in card
    assert "ollama" not in card
    assert not (dist / "Modelfile").exists()


def apart(*line: object) -> str:
    """What a command line says in a process of its own, which may load a libllama of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeqaf", *map(str, line)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_llama_cpp_opens_it_and_has_its_integers(copy: Copy, parts: list[Path], libllama: Path) -> None:
    dist = copy(parts[0].parent)
    line = ("--runtime", "llama.cpp", "--llama-lib", libllama, "--require", "R2,llama.cpp", "--json")
    checks = json.loads(apart("verify", dist, *line))["checks"]
    found = {(check["rung"], check["verdict"]) for check in checks if check["subject"].startswith("llama_cpp")}
    assert found >= {("R1", "exact"), ("R2", "exact")}
    assert {check["verdict"] for check in checks if check["rung"] == "R0"} == {"exact"}


def test_it_scores_as_the_whole_file_does(shell: Any, road: Any, parts: list[Path], libllama: Path) -> None:
    line = ("--data", road.data, "--rows", 2, "--runtime", "llama.cpp", "--llama-lib", libllama)
    for name, dist in {"split.json": parts[0].parent, "whole.json": road.dist}.items():
        apart("eval", dist, *line, "-o", name)
    assert read_json(Path("split.json"))["answers"] == read_json(Path("whole.json"))["answers"] != []


def test_it_is_deployed_whole_or_not_at_all(shell: Any, copy: Copy, parts: list[Path]) -> None:
    dist = copy(parts[0].parent)
    said = shell.json("deploy", dist, "--to", "card")["files"]
    assert said == [path.name for path in parts]
    assert sorted(path.name for path in Path("card").iterdir()) == ["edgeqaf.json", *said]
    for path in parts:
        assert Path("card", path.name).read_bytes() == path.read_bytes()
    shell.refused(2, "deploy", dist, "--to", "card", says=f"{parts[0].name} already exists")
    Path("card", parts[0].name).unlink()
    shell.refused(2, "deploy", dist, "--to", "card", says=f"{parts[1].name} already exists")
    shell.ok("deploy", dist, "--to", "card", "--force")
    assert Path("card", parts[0].name).read_bytes() == parts[0].read_bytes()
    flip(dist / parts[1].name, -1000)
    shell.refused(4, "deploy", dist, "--to", "other", says=f"{parts[1].name}: its SHA-256 is not the receipt's")


def test_the_first_file_arrives_last_and_no_earlier_one_meets_new_others(
    shell: Any, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, whole = [], staging._replace

    def replace(part: Path, target: Path) -> None:
        whole(part, target)
        arrived.append((target.name, Path("card", parts[0].name).exists()))

    monkeypatch.setattr(staging, "_replace", replace)
    expected = [(parts[1].name, False), (parts[0].name, True), ("edgeqaf.json", True)]
    for force in ((), ("--force",)):
        shell.ok("deploy", parts[0].parent, "--to", "card", *force)
        assert arrived == expected
        arrived.clear()


@pytest.mark.parametrize(
    ("artifact", "says"),
    [("model-00002-of-00002.gguf", "is not what an exporter 'gguf' writes"),
     ("model-00001-of-00003.gguf", "artifact 'model-00003-of-00003.gguf' has no file with a digest"),
     ("model-00001-of-00001.gguf", "artifact 'model-00001-of-00001.gguf' has no file with a digest"),
     ("model-00001-of-00000.gguf", "artifact 'model-00001-of-00000.gguf' has no file with a digest"),
     ("other-00001-of-00002.gguf", "artifact 'other-00001-of-00002.gguf' has no file with a digest")],
)  # fmt: skip
def test_a_receipt_with_another_count_or_name_is_refused(
    artifact: str, says: str, shell: Any, copy: Copy, parts: list[Path]
) -> None:
    dist = copy(parts[0].parent)
    receipt = read_json(dist / "edgeqaf.json")
    files = receipt["files"] | {"model-00001-of-00003.gguf": receipt["files"][parts[0].name]}
    files |= {"model-00002-of-00003.gguf": files[parts[0].name]}
    edit(dist / "edgeqaf.json", artifacts={"gguf": artifact}, files=files)
    for line in (("verify", dist), ("deploy", dist, "--to", "card"), ("report", dist, "-o", "page.html")):
        shell.refused(3, *line, says=says)


def test_a_missing_file_is_refused_by_its_name(shell: Any, copy: Copy, road: Any, parts: list[Path]) -> None:
    dist = copy(parts[0].parent)
    (dist / parts[1].name).unlink()
    shell.refused(3, "verify", dist, says=f"{parts[1].name} is missing: {parts[0].name} is the first of 2 files")
    shell.refused(3, "quantize", dist / parts[0].name, "-o", "base", says=f"{parts[1].name} is missing")
    shell.refused(3, "devices", "fit", dist, "-d", "raspberry-pi-5", says=f"'{parts[1].name}' is not in the folder")


def test_it_is_compared_and_imported_as_the_whole_file_is(shell: Any, road: Any, parts: list[Path]) -> None:
    whole = road.dist / "model.gguf"
    assert shell.json("diff", parts[0], whole)["tensors"] == []
    assert shell.json("diff", parts[0], road.base)["codes"] == shell.json("diff", whole, road.base)["codes"] > 0
    shell.refused(3, "diff", parts[1], whole, says=f"name the first: {parts[0]}")
    shell.ok("quantize", parts[0], "-o", "base")
    said = shell.json("export", "base", "-o", "dist", "--format", "gguf")
    assert said["artifacts"] == {"gguf": parts[0].name}
    for path in parts:
        assert Path("dist", path.name).read_bytes() == path.read_bytes()
    shell.ok("export", "base", "-o", "one", "--format", "gguf", "--split-max-size", "1G")
    assert Path("one", "model.gguf").read_bytes() == whole.read_bytes()
    assert Path("one", "Modelfile").is_file()
    shell.ok("export", road.merged, "-o", "lent", "--format", "gguf", "--tokenizer-from", parts[0])
    assert Path("lent", "model.gguf").read_bytes() == whole.read_bytes()


def test_it_is_sized_shown_and_reported(shell: Any, road: Any, parts: list[Path]) -> None:
    dist = parts[0].parent
    fits = shell.json("devices", "fit", dist, "-d", "raspberry-pi-5")
    assert fits["origin"] == f"the sizes of {parts[0]} and 1 more"
    assert fits["bytes_by_part"]["weights"] == sum(path.stat().st_size for path in parts)
    assert all(f"{path.name}: {path.stat().st_size:,} bytes" in shell.ok("inspect", dist).out for path in parts)
    shell.ok("report", road.run, dist, "-o", "page.html")
    assert all(path.name in Path("page.html").read_text() for path in parts)


def test_a_patch_names_the_way_to_one_file(shell: Any, road: Any, parts: list[Path]) -> None:
    shell.ok("diff", road.base, parts[0], "-o", "task.eqpatch")
    for path in parts:
        shutil.copy(path, path.name)
    for verb in ("apply", "revert", "verify"):
        shell.refused(3, "patch", verb, parts[0].name, "task.eqpatch", says="llama-gguf-split --merge")
