"""Every family walks the whole road: quantized, tuned, merged, exported, and its integers proven in llama.cpp."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import edgeqaf.hf  # noqa: F401  (transformers reads our folders)
from edgeqaf import checkpoint, dist
from edgeqaf.finetune import Settings, finetune
from edgeqaf.merge import merge
from edgeqaf.modeling import build
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.qtensor import QTensor
from edgeqaf.quantize import quantize
from edgeqaf.report import Verdict, compare_bits
from exporters.gguf import families
from runtime_tests import ladder

# One model of each kind of config.json; Gemma 3's has local and global layers.
ROADS = ("llama 3.2 1B", "mistral v0.3", "qwen2.5 0.5B", "qwen3 1.7B", "gemma 2 2B", "gemma 3 1B", "phi 4 mini")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"prompt": f"Say number {i}.", "completion": f"number: {i}"} for i in range(16)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def test_every_kind_of_model_is_walked(make: Callable[[str], Any]) -> None:
    walked = {make(name).config["model_type"] for name in ROADS}
    assert walked == {kind for name in families.names() for kind in families.named(name).model_types}


@pytest.mark.parametrize("name", ROADS)
def test_a_model_is_tuned_and_its_file_proven(
    name: str, make: Callable[[str], Any], data: Path, tmp_path: Path
) -> None:
    made = make(name)
    base = quantize(made.model.folder, tmp_path / "base", "q4_0", "rtn")
    quantized = {n for n, t in base.tensors.items() if isinstance(t, QTensor)}
    assert quantized == {n for n, t in made.model.tensors.items() if t.ndim == 2 and "layers" in n}
    settings = Settings(method="codes", options={"lr": 1.0}, steps=6, batch=2, max_length=32, threads=1)
    finetune(base.folder, data, tmp_path / "run", settings)
    merged, movements = merge(tmp_path / "run", tmp_path / "merged")
    assert sum(m.moved for m in movements.values())
    with torch.no_grad():
        tokens = torch.tensor([made.tokens])
        ours = build(merged.config, merged.tensors)(tokens).logits
        theirs = AutoModelForCausalLM.from_pretrained(merged.folder)(tokens).logits
    assert not compare_bits(ours.numpy(), theirs.numpy()).any()
    receipt = dist.export(merged, ["gguf"], tmp_path / "dist")
    assert receipt["root"] == merged.root != base.root
    opened = dist.open_dist(tmp_path / "dist")
    (artifact,) = opened.artifacts
    assert ladder.check_file(artifact, opened.digests).verdict is Verdict.EXACT
    expected = dict(checkpoint.load(tmp_path / "merged").quantized())
    proven = set()
    for job in ladder.jobs(artifact, expected, ladder.at_home(), RuntimeOptions()):
        if isinstance(job, ladder.Job):
            found = ladder.climb(replace(job, tokens=[made.tokens])).checks
            again = [c for c in found if c.rung == "R4"]  # of one prompt, where the family is written again
            assert {c.verdict for c in again} <= {Verdict.EXACT, Verdict.ABSENT}, again
            found = [c for c in found if c not in again]
            assert {c.verdict for c in found} == {Verdict.EXACT}, [c for c in found if c.verdict is not Verdict.EXACT]
            assert {c.tensors for c in found} == {len(expected)}
            proven |= {(c.rung, job.runtime) for c in found}
    assert {(rung, "torch_cpu") for rung in ("R1", "R2")} <= proven
    assert ("R3", "llama_cpp") in proven or ("R1", "llama_cpp") not in proven  # where it is not installed
