"""Odd paths, other working directories, moved folders."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

TUNE = ("--steps", 4, "--batch", 4, "--lr", 0.5, "--threads", 1, "--max-length", 48)


def test_a_run_finds_its_base_by_a_relative_path(shell: Any, road: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with spaces and letters of other scripts, ``..`` on the way, and a merge from another directory."""
    place = Path("ünï çödé 空")
    Path("elsewhere").mkdir()
    shutil.copytree(road.base, place / "a base")
    shutil.copyfile(road.data, place / "dätä.jsonl")
    shell.ok("finetune", place / ".." / place / "a base", "--data", place / "dätä.jsonl", "-o", place / "a run", *TUNE)
    monkeypatch.chdir("elsewhere")
    said = shell.json("merge", f"../{place}/a run", "-o", f"../{place}/merged/one")
    shell.ok("export", f"../{place}/merged/one", "-o", "dist", "--format", "gguf")
    assert shell.json("inspect", "dist")["root"] == said["root"]
    assert shell.json("deploy", "dist", "--to", f"../{place}/card")["files"] == ["model.gguf"]


def test_base_and_run_may_move_together_but_not_apart(shell: Any, road: Any) -> None:
    for there in ("one", "two"):
        shutil.copytree(road.base, f"{there}/base")
        shutil.copytree(road.run, f"{there}/run")
    shell.ok("merge", "one/run", "-o", "merged")
    shutil.move("two/base", "moved")
    result = shell.refused(3, "merge", "two/run", "-o", "again", says=f"two{os.sep}base")
    assert result.out == ""
    moved = shell.json("merge", "two/run", "--base", "moved", "-o", "again")
    assert moved["root"] == shell.json("inspect", "merged")["root"]


def test_an_output_makes_its_parents(shell: Any, tiny_float_model: Path) -> None:
    shell.ok("quantize", tiny_float_model, "-o", "a/b/../c/base")
    assert Path("a/c/base/edgeqaf.json").is_file()


def test_the_same_input_gives_the_same_bytes_anywhere(shell: Any, road: Any, tiny_float_model: Path) -> None:
    shell.ok("quantize", os.path.relpath(tiny_float_model), "-o", "base")
    assert sorted(os.listdir("base")) == sorted(os.listdir(road.base))
    for file in Path("base").iterdir():
        assert file.read_bytes() == (road.base / file.name).read_bytes()
