"""The receipt of a GPU: what can be said of it where there is none. PyTorch on CUDA runs here on the CPU."""

import json
from pathlib import Path

import pytest
import torch

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel, load
from edgeqaf.protocols import Artifact, RuntimeOptions
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Verdict
from runtime_tests import gpu_receipt, ladder
from runtime_tests.job import Job
from runtime_tests.runtimes import torch_cuda

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def artifact(tiny_base: Path, tmp_path: Path) -> Artifact:
    exporter = plugins.find("exporters", "gguf")
    model: QModel = load(tiny_base)
    exporter.export(model, tmp_path / "model.gguf")
    return Artifact("gguf", tmp_path / "model.gguf", exporter.read_back(tmp_path / "model.gguf"), tiny_base)


def climbed(artifact: Artifact, expected: dict[str, QTensor]):
    (configuration,) = torch_cuda.runtime.configurations
    return ladder.climb(
        ladder.with_prompts(Job("torch_cuda", configuration, artifact, expected, RuntimeOptions()), None)
    )


def test_what_torch_cuda_computes_is_exact_whatever_the_device(artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
    """The same session as on a GPU; a code that is off by one is named by both rungs."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch_cuda, "runtime", torch_cuda.TorchCuda("cpu"))
    own = {name: q for name, _, q in artifact.quantized()}
    assert [c.verdict for c in climbed(artifact, own).checks] == [Verdict.EXACT, Verdict.EXACT]
    name = next(iter(own))
    codes = own[name].codes.copy()
    codes[3, 5] += 1 if codes[3, 5] < 0 else -1
    wrong = own | {name: QTensor(own[name].grid, codes, own[name].scale, own[name].zero)}
    found = climbed(artifact, wrong).checks
    assert [(c.verdict, c.wrong, c.differing) for c in found[:1]] == [(Verdict.DIFFERENT, (name,), 1)]
    assert (found[1].verdict, found[1].wrong) == (Verdict.DIFFERENT, (name,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_absent_and_there_is_no_receipt(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    available = plugins.find("runtimes", "torch_cuda").availability(RuntimeOptions())
    assert available.version is None
    assert f"no CUDA GPU here (torch {torch.__version__}" in available.reason
    assert gpu_receipt.main(["-o", str(tmp_path / "receipts"), "--work", str(tmp_path / "work")]) == 6
    assert "sees no CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_torch_is_the_cpu_unless_cuda_is_named():
    assert plugins.resolve("runtimes", "torch") == "torch_cpu"
    assert plugins.resolve("runtimes", "torch-cuda") == "torch_cuda"
    assert "torch_cuda" not in ladder.at_home()


def test_every_runtime_of_a_gpu_is_asked():
    assert {"torch_cpu", "torch_cuda", "interpreter"} <= set(gpu_receipt.asked())
    assert not {"onnxruntime", "llama_cpp"} & set(gpu_receipt.asked())


def test_a_step_that_fails_or_cannot_start_has_not_passed():
    assert gpu_receipt.run("x", ["false"]).passed is False
    assert gpu_receipt.run("x", ["no-such-program"]).said == ("[Errno 2] No such file or directory: 'no-such-program'",)
    step = gpu_receipt.run("x", ["echo", "a b"])
    assert (step.what, step.command, step.passed, step.said) == ("x", "echo a b", True, ("a b",))


def test_a_receipt_is_a_line_of_the_page_that_no_longer_says_there_is_none(tmp_path: Path):
    page = tmp_path / "README.md"
    page.write_text((CHECKOUT / "docs" / "receipts" / "README.md").read_text("utf-8"), "utf-8")
    rows = [{"family": "GPU", "cells": {"m": {"state": "exact"}, "n": {"state": "absent"}}},
            {"family": "PyTorch", "cells": {"m": {"state": "exact"}}}]  # fmt: skip
    made = {
        "date": "2026-01-02", "gpu": {"name": "Card", "driver": "1.2"}, "versions": {"torch": "9.9"}, "passed": True,
        "kernel tests": {"tests": 9, "failures": 0, "errors": 1, "skipped": 2},
        "gpu cells": gpu_receipt.on_gpu({"rows": rows}),
    }  # fmt: skip
    for _ in range(2):
        gpu_receipt.enter(page, gpu_receipt.line(made, "r.json"))
    text = page.read_text("utf-8")
    row = "| [2026-01-02](r.json) | Card, driver 1.2 | 9.9 | 1 absent, 1 exact | 6 of 7 | passed |\n"
    assert text.endswith(f"|---|---|---|---|---|---|\n{row}{row}")
    assert "No receipt exists" not in text


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_rehearsal_calls_itself_one_and_shows_every_gpu_as_absent(tmp_path: Path):
    assert gpu_receipt.main(["--rehearse", "-o", str(tmp_path), "--work", str(tmp_path / "work")]) == 0
    (file,) = tmp_path.glob("*-rehearsal.json")
    made = json.loads(file.read_text("utf-8"))
    assert (made["rehearsal"], made["passed"], made["gpu"]) == (True, False, None)
    assert [step["passed"] for step in made["steps"]] == [True] * 5
    assert set(made["gpu cells"]) == {"absent"}
