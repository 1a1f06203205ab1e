"""verify --matrix, as a user runs it: several models, stopped and gone on with, spoilt, and with runtimes absent."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from damage import flip

from edgeqaf.dist import open_dist

HOME = ("--runtime", "torch,onnxruntime,llama.cpp,onnxruntime_web", "--matrix")
UP = "model.layers.1.mlp.up_proj.weight"


@dataclass(frozen=True)
class Made:
    """A matrix of two models. folders: the dist folders; page: the HTML file, its climbs beside it."""

    folders: tuple[Path, Path]
    page: Path
    said: Any
    text: str


@pytest.fixture(scope="module")
def made(tiny_float_model: Path, tiny_base: Path, command: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("matrix")
    both, gguf, page = folder / "both", folder / "gguf", folder / "out" / "m.html"
    command("quantize", tiny_float_model, "--quantizer", "absmax", "-o", folder / "base")
    command("export", tiny_base, "--format", "gguf,onnx", "-o", both)
    command("export", folder / "base", "--format", "gguf", "-o", gguf)
    said = command("verify", both, gguf, *HOME, "-o", page, "--json")
    assert (said.code, said.err) == (0, "")
    text = command("verify", both, gguf, *HOME, "-o", page)
    return Made((both, gguf), page, said.json(), text.out)


def states(said: Any, label: str) -> dict[str, str]:
    return {f"{r['runtime']} {r['configuration']}".strip(): r["cells"][label]["state"] for r in said["rows"]}


def test_each_runtime_is_a_row_and_each_model_a_column(made: Made):
    assert [model["label"] for model in made.said["models"]] == ["both", "gguf"]
    assert states(made.said, "both") == {
        "torch_cpu float32": "exact", "llama_cpp plain": "bounded", "llama_cpp repack": "bounded",
        "onnxruntime off": "bounded", "onnxruntime fused level 1": "bounded", "onnxruntime fused level 4": "bounded",
        "onnxruntime_web": "absent",
    }  # fmt: skip
    of_onnx = {name: "not offered" for name in states(made.said, "both") if name.startswith("onnx")}
    assert states(made.said, "gguf") == states(made.said, "both") | of_onnx
    assert made.said["passed"]
    assert made.said["differing"] == 0


def test_what_is_compared_is_what_the_ladder_compares(made: Made, command: Callable[..., Any], tmp_path: Path):
    """The counts of a cell are those of verify itself, run alone."""
    alone = command("verify", made.folders[1], "--runtime", "torch", "--json", "-o", tmp_path / "v.json").json()
    expected = [c for c in alone["checks"] if c["rung"] in ("R1", "R2")]
    row = next(r for r in made.said["rows"] if r["runtime"] == "torch_cpu")
    found = row["cells"]["gguf"]["checks"]
    assert [{k: c[k] for k in c if k != "folder"} for c in found] == expected
    assert made.said["compared"]["weights"] == sum(
        c["compared"] for r in made.said["rows"] for cell in r["cells"].values() for c in cell["checks"]
        if c["rung"] in ("R1", "R2")
    )  # fmt: skip


def test_a_runtime_that_is_not_there_is_absent_with_the_remedy(made: Made):
    rows = [r for r in made.said["rows"] if r["runtime"] == "onnxruntime_web"]
    assert [r["configuration"] for r in rows] == [""]
    (cell,) = (c for c in rows[0]["cells"].values() if c["state"] != "not offered")
    assert (cell["state"], cell["reached"]) == ("absent", "")
    assert "name the folder with --places" in cell["checks"][0]["detail"]
    assert "absent: onnxruntime_web: no folder of places is named" in made.text


def test_the_text_has_a_mark_for_each_rung(made: Made):
    line = next(line for line in made.text.splitlines() if "repack" in line)
    assert re.search(r"repack\s*│\s*= = = ≈=* +[=≈].*│\s*= = = ≈=* +[=≈]", line)
    assert "2 models in 7 ways of running them" in made.text


def test_a_second_run_climbs_nothing_and_force_all(made: Made, command: Callable[..., Any], tmp_path: Path):
    assert "0 climbs made, 9 kept from before" in made.text
    shutil.copytree(made.page.with_suffix(".climbs"), tmp_path / "m.climbs")
    line = ("verify", made.folders[1], "--runtime", "torch", "--matrix", "-o", tmp_path / "m.html")
    assert "0 climbs made, 1 kept" in command(*line).out
    assert "1 climbs made, 0 kept" in command(*line, "--force").out


def test_only_what_is_missing_or_spoilt_is_climbed_again(made: Made, command: Callable[..., Any], tmp_path: Path):
    shutil.copytree(made.page.with_suffix(".climbs"), tmp_path / "m.climbs")
    kept = sorted((tmp_path / "m.climbs").glob("llama_cpp-*.json"))
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:-40])
    line = ("verify", *made.folders, *HOME, "-o", tmp_path / "m.html")
    assert "2 climbs made, 7 kept" in command(*line).out


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(made: Made, command: Callable[..., Any], tmp_path: Path):
    page, climbs = tmp_path / "m.html", tmp_path / "m.climbs"
    line = ["verify", str(made.folders[1]), "--runtime", "torch,llama.cpp", "--matrix", "-o", str(page)]
    with subprocess.Popen([sys.executable, "-m", "edgeqaf", *line], start_new_session=True) as process:
        while process.poll() is None and not list(climbs.glob("*.json")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not page.exists()
    before = {file: json.loads(file.read_text("utf-8")) for file in climbs.glob("*.json")}
    assert len(before) >= 1
    result = command(*line)
    assert f"{3 - len(before)} climbs made, {len(before)} kept" in result.out


def test_a_damaged_artifact_is_red_and_named(made: Made, copy: Any, command: Callable[..., Any], tmp_path: Path):
    dist = copy(made.folders[1])
    flip(dist / "model.gguf", offset_of(dist, UP))
    page = tmp_path / "m.html"
    result = command("verify", dist, "--runtime", "torch", "--matrix", "-o", page)
    assert result.code == 4
    assert f"R0 {dist.name}: gguf: {UP}: expected" in result.err
    text = page.read_text("utf-8")
    assert '<p class="summary failed">' in text
    assert re.search(rf"≠ different</span> {dist.name}: R0 gguf<br><small>1 differ: {re.escape(UP)}", text)


def offset_of(dist: Path, tensor: str) -> int:
    """Where the first code of a tensor lies in the GGUF file."""
    from gguf import GGUFReader

    (artifact,) = open_dist(dist).artifacts
    name = artifact.tensors[tensor].name
    return next(int(t.data_offset) for t in GGUFReader(artifact.path).tensors if t.name == name) + 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("{dist}", "{base}"), "2 dist folders are named"),
        (("{base}", "{base}", "--matrix"), "named twice"),
        (("--matrix",), "verify needs a dist folder"),
        (("{base}", "--matrix", "--record", "g.json"), "--matrix and --record exclude each other"),
        (("{base}", "--matrix", "--against", "{base}"), "--matrix and --against exclude each other"),
        (("{base}", "--matrix", "--up-to", "R2"), "--matrix and --up-to exclude each other"),
        (("{base}", "--matrix", "-o", "{base}/README.md"), "is there and no earlier matrix"),
        (("{base}", "--matrix", "--runtime", "nothing"), "unknown runtime 'nothing'"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: tuple[str, ...], says: str, made: Made, shell: Any):
    given = {"dist": made.folders[0], "base": made.folders[1]}
    shell.refused(2, "verify", *(flag.format(**given) for flag in flags), says=says)


def test_what_is_demanded_of_it_must_be_there(made: Made, command: Callable[..., Any]):
    line = ("verify", *made.folders, *HOME, "-o", made.page)
    assert command(*line, "--require", "onnxruntime_web").code == 6
    assert command("verify", made.folders[1], *HOME, "-o", made.page, "--require", "R2,llama.cpp").code == 0
