"""`edgeqaf verify --self-test`: what it takes, what it says, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtime_tests.selftest import bench
from runtime_tests.selftest.findings import Control, Finding, Report

ESCAPED = Finding("one code off by one", "weights", "gguf q4_0", ("a.weight",), {"files": True, "R1": False})
CAUGHT = Finding("two rows swapped", "weights", "gguf q4_0", ("b.weight",), {"R0 tensors": True, "R1": True})


def test_a_dist_folder_of_ones_own(shell: Any, road: Any, tmp_path: Path) -> None:
    """Every kind that its one grid can have, in its GGUF file and its ONNX folder; the folder is left as it was."""
    before = {path: path.read_bytes() for path in road.dist.rglob("*") if path.is_file()}
    said = shell.json("verify", road.dist, "--self-test", "--runtime", "torch", "-o", tmp_path / "found.json")
    assert said == json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert (said["passed"], said["caught"], said["false alarms"]) == (True, said["defects"], 0)
    assert {f["subject"] for f in said["findings"]} == {"gguf", "onnx"}
    assert said["defects"] > 60
    assert {path: path.read_bytes() for path in road.dist.rglob("*") if path.is_file()} == before


def test_a_defect_that_escapes_is_exit_4(shell: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "run", lambda *asked: Report(0, [CAUGHT, ESCAPED], [], []))
    result = shell.run("verify", "--self-test", "-o", tmp_path / "found.json")
    assert result.code == 4
    assert "1 of 2 defects escaped; one code off by one in gguf q4_0, a.weight" in result.err
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert (found["passed"], found["defects"], found["caught"]) == (False, 2, 1)


def test_a_false_alarm_is_exit_4(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "run", lambda *asked: Report(0, [CAUGHT], [Control("gguf q4_0", "R1", ("c",))], []))
    result = shell.run("verify", "--self-test")
    assert result.code == 4
    assert "accused without cause: c" in result.err


def test_what_contradicts_itself_is_refused(shell: Any, road: Any, tmp_path: Path) -> None:
    shell.refused(2, "verify", says="verify needs a dist folder")
    for flag, value in (("--require", "R2"), ("--record", tmp_path / "g.json"), ("--places", tmp_path)):
        shell.refused(2, "verify", "--self-test", flag, value, says=f"--self-test and {flag} exclude each other")
    (tmp_path / "other.json").write_text("{}", "utf-8")
    shell.refused(2, "verify", "--self-test", "-o", tmp_path / "other.json", says="no earlier report")
