"""Small folders of each kind that the Hugging Face libraries meet."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeqaf import merge
from edgeqaf.finetune import Settings, finetune
from edgeqaf.quantize import quantize


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    made = [{"prompt": f"Say number {i}.", "completion": f"number: {i}"} for i in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    return file


@pytest.fixture(scope="session")
def based_on(tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A base folder of the tiny model on any grid; read-only."""
    folder = tmp_path_factory.mktemp("bases")

    def base(grid: str) -> Path:
        if not (folder / grid).is_dir():
            quantize(tiny_float_model, folder / grid, grid, "rtn")
        return folder / grid

    return base


@pytest.fixture(scope="session")
def tuned(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run folder of any method over the tiny base; read-only."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"lora": {"rank": 4, "lr": 0.05}, "lowrank": {"rank": 4, "lr": 0.5}}

    def run(method: str) -> Path:
        if not (folder / method).is_dir():
            settings = Settings(method=method, steps=3, batch=4, max_length=48, threads=1, options=options[method])
            finetune(tiny_base, rows, folder / method, settings)
        return folder / method

    return run


@pytest.fixture(scope="session")
def merged(tuned: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged folder; read-only."""
    folder = tmp_path_factory.mktemp("merged") / "merged"
    merge.merge(tuned("lowrank"), folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    def copied(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy of {folder.name}"))

    return copied
