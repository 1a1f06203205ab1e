"""Folders as edgeqaf exports them, and the consumers that are to load them unchanged."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families.family_models import SMALL, random_tensors
from plain import Prompts
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING

from edgeqaf.checkpoint import QModel
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.quantize import quantize
from exporters.onnx import exporter

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
STORYTELLER = CHECKOUT / "examples" / "storyteller-6m"
Consume = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consume]:
    with _consumer("optimum", tmp_path_factory.mktemp("optimum")) as consume:
        yield consume


@pytest.fixture(scope="session")
def genai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consume]:
    with _consumer("genai", tmp_path_factory.mktemp("genai")) as consume:
        yield consume


@contextmanager
def _consumer(name: str, place: Path) -> Iterator[Consume]:
    """A function that has the consumer do a job of `jobs`, and returns what it found."""
    home = CHECKOUT / ".venv" / name
    if not (home / "ready").is_file():
        pytest.skip(f"no {name} at {home}: make consumers")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    line = [str(home / "bin" / "python"), str(HERE / f"run_{name}.py")]
    with subprocess.Popen(line, stdin=-1, stdout=-1, text=True, env=environment) as process:
        assert process.stdin
        assert process.stdout
        done = iter(process.stdout.readline, "")

        def consume(folder: Path, prompts: Prompts, level: str | None = None, **more: Any) -> dict[str, Any]:
            job = {"folder": str(folder), "level": level, **prompts.__dict__, "to": str(place / "found.npz"), **more}
            print(json.dumps(job), file=process.stdin, flush=True)
            assert f"{job['to']}\n" in done, f"{name} ended with {process.wait()}"
            with np.load(job["to"]) as found:
                return dict(found)

        yield consume
        process.stdin.close()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The ONNX folder of a random model of an architecture, its config changed as asked; made once."""
    made: dict[str, Path] = {}

    def get(architecture: str, **changes: Any) -> Path:
        key = json.dumps([architecture, changes])
        if key not in made:
            made[key] = _export(architecture, changes, tmp_path_factory.mktemp(architecture))
        return made[key]

    return get


def _export(architecture: str, changes: dict[str, Any], folder: Path) -> Path:
    config = CONFIG_MAPPING[architecture](**{**SMALL, **changes}).to_dict() | {"model_type": architecture}
    source = folder / "model"
    source.mkdir()
    for companion in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(STORYTELLER / companion, source / companion)
    (source / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(random_tensors(config), source / "model.safetensors", metadata={"format": "pt"})
    base = quantize(source, folder / "base", "q4_0", "absmax")
    return exporter.export(base, folder / "onnx")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> QModel:
    return quantize(STORYTELLER, tmp_path_factory.mktemp("storyteller") / "base", "q4_0", "absmax")


@pytest.fixture(scope="session")
def storyteller(base: QModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exporter.export(base, tmp_path_factory.mktemp("storyteller") / "onnx")


@pytest.fixture(scope="session")
def exact(base: QModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the exact profile."""
    asked = ExportOptions(onnx=OnnxOptions("exact", activations="int16"))
    return exporter.export(replace(base, asked=asked), tmp_path_factory.mktemp("exact") / "onnx")
