"""What is there already stays as it is, unless it is an earlier output and --force was given."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Copy = Callable[[Path], Path]


@pytest.fixture
def lines(road: Any, tiny_float_model: Path) -> dict[str, tuple[object, ...]]:
    """The commands that write a folder, but for where."""
    quick = ("--steps", 4, "--batch", 4, "--lr", 0.5, "--threads", 1, "--max-length", 48)
    return {
        "base": ("quantize", tiny_float_model),
        "run": ("finetune", road.base, "--data", road.data, *quick),
        "merged": ("merge", road.run),
        "dist": ("export", road.merged, "--format", "gguf"),
    }


KINDS = pytest.mark.parametrize("kind", ["base", "run", "merged", "dist"])


@KINDS
def test_an_output_that_exists_is_refused(kind: str, shell: Any, lines: Any) -> None:
    Path("out").mkdir()
    Path("out", "precious").write_text("x")
    shell.refused(2, *lines[kind], "-o", "out", says="out already exists")
    shell.refused(2, *lines[kind], "-o", "out", "--force", says=f"out is there and no {kind} folder")
    shell.refused(2, *lines[kind], "-o", "", "--force", says=". is there and no")


@KINDS
def test_force_replaces_an_earlier_output(kind: str, shell: Any, copy: Copy, lines: Any, road: Any) -> None:
    out = copy(getattr(road, kind))
    Path(out, "stale").write_text("x")
    shell.ok(*lines[kind], "-o", out, "--force")
    assert not Path(out, "stale").exists()
    assert Path(out, "edgeqaf.json").is_file()
    assert sorted(os.listdir()) == [out.name]


@KINDS
def test_force_does_not_take_away_what_is_read(kind: str, shell: Any, lines: Any, road: Any, tmp_path: Path) -> None:
    for name in ("base", "run", "merged", "dist"):
        if name != kind:
            own = shutil.copytree(getattr(road, name), tmp_path / name)
            shell.refused(2, *lines[kind], "-o", own, "--force", says=f"{name} is there and no {kind} folder")


@KINDS
def test_a_link_is_no_output(kind: str, shell: Any, lines: Any) -> None:
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        shell.refused(2, *lines[kind], "-o", name, "--force", says=f"{name} is a symbolic link")


@KINDS
def test_a_file_is_no_place_for_a_folder(kind: str, shell: Any, lines: Any) -> None:
    Path("file").write_text("x")
    shell.refused(2, *lines[kind], "-o", "file", says="file already exists")
    shell.refused(2, *lines[kind], "-o", "file", "--force", says=f"file is there and no {kind} folder")


@pytest.mark.parametrize("kind", ["base", "merged", "dist"])
def test_a_disk_too_small_is_named_with_its_numbers(
    kind: str, shell: Any, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**30, used=2**30, free=1_000_000))
    result = shell.refused(5, *lines[kind], "-o", "out", says="1.0 MB are free")
    assert "out needs " in result.err


def test_a_folder_that_cannot_be_written_is_named(shell: Any, lines: Any) -> None:
    Path("closed").mkdir()
    Path("closed").chmod(0o500)
    if os.access("closed", os.W_OK):
        pytest.skip("this user may write anywhere")
    shell.refused(5, *lines["base"], "-o", "closed/base", says="Permission denied")


def test_a_report_replaces_reports_only(shell: Any, copy: Copy, road: Any) -> None:
    data = Path(shutil.copyfile(road.data, "test.jsonl"))
    merged, dist = copy(road.merged), copy(road.dist)
    score = ("eval", merged, "--data", data, "--rows", 1, "-o")
    for there in (data, merged, merged / "config.json"):
        shell.refused(2, *score, there, says=f"{there} is there and no earlier report")
    for there in (data, dist, dist / "model.gguf"):
        shell.refused(2, "verify", dist, "-o", there, says=f"{there} is there and no earlier report")
    shell.refused(2, "report", road.run, "-o", merged, "--force", says="is a folder")
    shell.ok(*score, "score.json")
    shell.ok(*score, "score.json")


def test_a_deployment_never_replaces_the_manifest_of_a_model(shell: Any, copy: Copy, road: Any) -> None:
    shell.refused(2, "deploy", road.dist, "--to", copy(road.merged), "--force", says="is there and no dist folder")
    shell.ok("deploy", road.dist, "--to", "card")
    shell.refused(2, "deploy", road.dist, "--to", "card", says="model.gguf already exists")
    shell.ok("deploy", road.dist, "--to", "card", "--force")
