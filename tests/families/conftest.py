"""Each case of `family_models` as a float folder, and as the F32 file that GGUF export makes of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import CASES, STORYTELLER, TOKENS, VOCABULARY, random_tensors
from safetensors.numpy import save_file

from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Floats
from edgeqaf.modeling import build
from edgeqaf.source import FloatModel
from exporters.gguf import exporter, families


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Made:
    """model: its float32 tensors; file: the same in GGUF; tokens: a prompt as long as the file allows."""

    model: QModel
    file: Path
    tokens: list[int]

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.model.config)

    def logits(self, config: dict[str, Any]) -> Floats:
        """transformers' logits for the prompt, from these tensors under any config."""
        with torch.no_grad():
            found: Floats = build(config, self.model.tensors)(torch.tensor([self.tokens])).logits[0].numpy()
        return found


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A case by its name; made once, read-only. Skips where its published config is not beside the checkout."""
    made: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in made:
            made[name] = _make(CASES[name].config(), tmp_path_factory.mktemp("family"))
        return made[name]

    return get


def _make(config: dict[str, Any], folder: Path) -> Made:
    for companion in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(STORYTELLER / companion, folder / companion)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(random_tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    source = FloatModel(folder)
    model = QModel(source.config, dict(source), folder)
    exporter.export(model, folder / "model.gguf")
    longest = families.of_config(config).context_length(config)
    tokens = np.random.default_rng(1).integers(5, VOCABULARY, min(TOKENS, longest)).tolist()
    return Made(model, folder / "model.gguf", tokens)
