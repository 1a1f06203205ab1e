"""The command line in this process, and one walk down its whole road that every test shares."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeqaf import cli

TINY = ("--batch", 4, "--threads", 1, "--max-length", 48)


@dataclass(frozen=True)
class Result:
    """What one command line came to."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON object on stdout; anything else there is an error."""
        return json.loads(self.out)


def run(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(a) for a in arguments])
    return Result(code, out.getvalue(), err.getvalue())


class Shell:
    """Runs command lines in an empty folder, and notices what they leave there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: object) -> Result:
        return run(*arguments)

    def ok(self, *arguments: object) -> Result:
        result = run(*arguments)
        assert (result.code, result.err) == (0, "")
        return result

    def json(self, *arguments: object) -> Any:
        return self.ok(*arguments, "--json").json()

    def refused(self, code: int, *arguments: object, says: str) -> Result:
        """Two lines, the documented code, ``says`` in what they say, and not a file or folder touched."""
        before = self.files()
        result = run(*arguments)
        assert result.code == code, result.err
        cause, remedy = result.err.splitlines()
        assert cause.startswith("error: ")
        assert remedy.startswith("  fix: ")
        assert "internal error" not in cause
        assert says in result.err
        assert self.files() == before
        return result

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of all that is in the folder, hidden or not."""
        return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in sorted(self.folder.rglob("*"))}


@dataclass(frozen=True)
class Road:
    """One of each folder that the commands make, and what each command said with --json; read-only."""

    data: Path
    base: Path
    run: Path
    merged: Path
    dist: Path
    lora: Path
    said: dict[str, Any]


@pytest.fixture(scope="session")
def command() -> Callable[..., Result]:
    return run


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def road(tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Road:
    folder = tmp_path_factory.mktemp("road")
    data = folder / "train.jsonl"
    rows = [{"prompt": f"Say number {i}.", "completion": f"number: {i}"} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tune = ("--data", data, "--steps", 6, *TINY)
    lines = {
        "base": ("quantize", tiny_float_model),
        "run": ("finetune", folder / "base", *tune, "--lr", 0.5),
        "merged": ("merge", folder / "run"),
        "dist": ("export", folder / "merged", "--format", "gguf,onnx"),
        "lora": ("finetune", folder / "base", *tune, "--method", "lora", "--rank", 4),
    }
    said = {}
    for name, line in lines.items():
        result = run(*line, "-o", folder / name, "--json")
        assert (result.code, result.err) == (0, ""), line
        said[name] = result.json()
    return Road(data, *(folder / name for name in lines), said)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder of the road into the test's own, to be damaged there."""

    def copied(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy of {folder.name}"))

    return copied
