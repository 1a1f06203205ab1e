"""From a GPTQ, AWQ or compressed-tensors folder to a device: the integers it came with are the integers that run."""

import json
from pathlib import Path
from typing import Any

import pytest
from quantized_folder import FORMATS, quantized

from edgeqaf import plugins
from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.qtensor import QTensor, decode

ROWS = [{"prompt": f"turn on lamp {i}", "completion": f"on; lamp; {i}"} for i in range(24)]


@pytest.fixture
def theirs(tiny_float_model: Path, shell: Any) -> Any:
    return lambda name, symmetric: (
        quantized(tiny_float_model, shell.folder / "theirs", name, 32, symmetric=symmetric).path
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_dry_run_names_every_tensor_and_its_grid_and_writes_nothing(name: str, shell: Any, theirs: Any) -> None:
    folder = theirs(name, False)
    before = shell.files()
    said = shell.json("quantize", folder, "-o", "base", "--dry-run")
    assert said["tensors"]["model.layers.0.mlp.up_proj.weight"] == "uint4"
    assert said["tensors"]["model.norm.weight"] == "float32"
    assert sorted(set(said["tensors"].values())) == ["float32", "uint4"]
    assert shell.files() == before


def test_what_belongs_to_other_models_is_a_usage_error(shell: Any, theirs: Any) -> None:
    folder = theirs("gptq", True)
    line = ("quantize", folder, "-o", "base")
    shell.refused(2, *line, "--grid", "q4_1", says="--grid q4_1 is for float models")
    shell.refused(2, *line, "--tokenizer", folder, says="is for GGUF files")
    shell.refused(2, *line, "--type", "Q4_K_M", says="--type Q4_K_M is for float models")
    shell.refused(2, *line, "--quantizer", "gptq", says="--quantizer gptq is for float models")
    shell.refused(2, *line, "--calib-tokens", 64, says="--calib-tokens 64 is for float models")


@pytest.mark.parametrize(
    ("name", "symmetric", "format", "grid"),
    [("gptq", True, "gguf", "q4_0"), ("compressed-tensors", True, "gguf", "q4_0"), ("awq", False, "onnx", "uint4")],
)
def test_what_is_exported_is_what_was_imported(
    name: str, symmetric: bool, format: str, grid: str, shell: Any, theirs: Any
) -> None:
    said = shell.json("quantize", theirs(name, symmetric), "-o", "base")
    assert set(said["weights"]) == {grid, "float32"}
    shell.ok("export", "base", "--format", format, "-o", "dist")
    exporter = plugins.find("exporters", format)
    stored = exporter.read_back(Path("dist", exporter.filename))
    assert merkle_root({key: tensor_digest(key, one.tensor) for key, one in stored.items()}) == said["root"]


def test_tuned_codes_are_all_that_moves_and_llama_cpp_runs_them(shell: Any, tiny_float_model: Path) -> None:
    made = quantized(tiny_float_model, shell.folder / "theirs", "gptq", 32, symmetric=True)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    shell.ok("quantize", made.path, "-o", "base")
    shell.ok("finetune", "base", "--data", "train.jsonl", "-o", "run", "--steps", 4, "--lr", 0.5, "--batch", 2,
             "--threads", 1)  # fmt: skip
    moved = shell.json("merge", "run", "-o", "merged")["moved"]
    assert moved > 0
    shell.ok("export", "merged", "--format", "gguf", "-o", "dist")
    different = 0
    for key, one in plugins.find("exporters", "gguf").read_back(Path("dist", "model.gguf")).items():
        if isinstance(one.tensor, QTensor):
            layer = made.linears[key.removesuffix(".weight")]
            assert (one.tensor.scale == layer.scale).all()
            different += int((decode(one.tensor) != layer.weights).sum())
    assert different == moved
    shell.ok("verify", "dist", "--require", "R2")
