"""Folders whose own papers are wrong: refused by what is wrong with them, never believed, never a crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import edit, flip, flip_in

Copy = Callable[[Path], Path]
WEIGHTS = "model.safetensors"

RECEIPTS: dict[str, tuple[dict[str, Any], str]] = {
    "another root": ({"root": "0" * 64}, "root 000000000000 is not that of its tensors"),
    "no artifact": ({"artifacts": {}}, "it names no artifact"),
    "artifact outside": ({"artifacts": {"gguf": "../model.gguf"}}, "'../model.gguf'"),
    "unknown format": ({"artifacts": {"tflite": "reference"}}, "'tflite'"),
    "no files": ({"files": {}}, "has no file with a digest"),
    "file outside": ({"files": {"../x": {"sha256": "0" * 64, "bytes": 1}}}, "'../x' is no path inside"),
    "files are a list": ({"files": []}, "malformed"),
    "a file without a size": ({"files": {"model.gguf": 3}}, "malformed"),
    "no tensors": ({"tensors": None}, "malformed"),
}


@pytest.mark.parametrize("fault", RECEIPTS)
def test_a_receipt_that_contradicts_itself_proves_nothing(fault: str, shell: Any, copy: Copy, road: Any) -> None:
    values, says = RECEIPTS[fault]
    dist = copy(road.dist)
    edit(dist / "edgeqaf.json", **values)
    shell.refused(3, "verify", dist, says=says)
    shell.refused(3, "deploy", dist, "--to", "card", says=says)
    shell.refused(3, "eval", dist, "--data", road.data, says=says)


@pytest.mark.parametrize("file", ["onnx/tokenizer_config.json", "onnx/model.onnx.data"])
def test_nothing_of_a_damaged_artifact_is_deployed(file: str, shell: Any, copy: Copy, road: Any) -> None:
    dist = copy(road.dist)
    flip(dist / file, -1)
    line = ("deploy", dist, "--to", "card", "--format", "onnx")
    shell.refused(4, *line, says=f"{file}: its SHA-256 is not the receipt's")
    (dist / file).unlink()
    shell.refused(4, *line, says=f"{file}: its SHA-256 is not the receipt's")


def test_the_failing_tensor_is_in_the_error_itself(shell: Any, copy: Copy, road: Any) -> None:
    dist = copy(road.dist)
    flip(dist / "model.gguf", -1000)
    result = shell.run("verify", dist, "--runtime", "llama.cpp", "--llama-lib", shell.folder)
    assert result.code == 4
    assert "R0 gguf: model.layers." in result.err.splitlines()[0]


def test_a_damaged_base_is_noticed_before_it_is_trained_on(shell: Any, copy: Copy, road: Any) -> None:
    base, tensor = copy(road.base), "model.layers.1.mlp.up_proj.weight"
    flip_in(base / WEIGHTS, f"{tensor}.codes")
    shell.refused(3, "finetune", base, "--data", road.data, "-o", "run", says=f"{tensor} does not match its digest")


CONFIGS = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 10**9, "vocab_size": 10,
    "rms_norm_eps": None, "hidden_act": "nope", "num_key_value_heads": 0,
}  # fmt: skip


@pytest.mark.parametrize("key", CONFIGS)
def test_a_config_of_another_model_is_refused(key: str, shell: Any, copy: Copy, road: Any) -> None:
    base = copy(road.base)
    edit(base / "config.json", **{key: CONFIGS[key]})
    line = ("finetune", base, "--data", road.data, "-o", "run", "--max-length", 48, "--dry-run")
    shell.refused(3, *line, says="config.json")


@pytest.mark.parametrize(
    ("method", "option"),
    [("lowrank", "lr=nan"), ("lowrank", "lr=-1"), ("lowrank", "lr=inf"), ("lora", "rank=0"), ("lora", "alpha=nan"),
     ("lota", "rank=0"), ("lota", "move_rate=2"), ("lota", "momentum=1")],
)  # fmt: skip
def test_an_option_out_of_range_is_named(method: str, option: str, shell: Any, road: Any) -> None:
    line = ("finetune", road.base, "--data", road.data, "-o", "run", "--method", method, "--set", option)
    shell.refused(2, *line, says=f"{method}: option {option.partition('=')[0]}")


def test_a_rank_out_of_range_leaves_no_run(shell: Any, road: Any) -> None:
    shell.refused(
        2, "finetune", road.base, "--data", road.data, "-o", "run", "--method", "lowrank", "--rank", 65, says="rank 65"
    )


def test_a_dry_run_of_merge_refuses_what_merge_refuses(shell: Any, road: Any) -> None:
    shell.refused(3, "merge", road.lora, "-o", "out", "--dry-run", says="lora cannot be merged exactly")


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "no parent": ("edgeqaf.json", {"parent": None}),
    "folded is a list": ("edgeqaf.json", {"folded": []}),
    "method is a number": ("edgeqaf.json", {"method": 3}),
    "options are a list": ("edgeqaf.json", {"options": []}),
    "seed is text": ("edgeqaf.json", {"seed": "x"}),
}


@pytest.mark.parametrize("fault", RUNS)
def test_a_run_with_wrong_papers_is_refused(fault: str, shell: Any, copy: Copy, road: Any) -> None:
    file, values = RUNS[fault]
    run = copy(road.run)
    edit(run / file, **values)
    shell.refused(3, "merge", run, "--base", road.base, "-o", "out", says=file)


@pytest.mark.parametrize("recorded", [3, "/nowhere"])
def test_a_recorded_base_that_is_no_folder_is_named(recorded: Any, shell: Any, copy: Copy, road: Any) -> None:
    run = copy(road.run)
    edit(run / "finetune.json", base=recorded)
    shell.refused(3, "merge", run, "-o", "out", says="--base FOLDER")
