"""The road with embedding and head on a grid: tuned around, carried in both formats, proven in every runtime."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from edgeqaf.checkpoint import load
from edgeqaf.source import EMBEDDING, ENDS, HEAD

RUNTIMES = ("torch_cpu", "llama_cpp", "onnxruntime")


@pytest.fixture
def untied(tiny_float_model: Path, tmp_path: Path) -> Path:
    """The tiny model, its head a tensor of its own: the embedding turned upside down."""
    folder = Path(shutil.copytree(tiny_float_model, tmp_path / "untied"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}), "utf-8")
    arrays = load_file(folder / "model.safetensors")
    save_file(arrays | {HEAD: arrays[EMBEDDING][::-1].copy()}, folder / "model.safetensors")
    return folder


def proven(shell: Any, data: Path, model: Path, grid: str) -> tuple[dict[str, Any], dict[tuple[str, str], int]]:
    """What quantize said, and how many weights each runtime showed exactly on each rung."""
    made = shell.json("quantize", model, "-o", "base", "--ends", grid)
    shell.ok("finetune", "base", "--data", data, "-o", "run", "--steps", 4, "--batch", 4, "--threads", 1, "--lr", 0.5,
             "--max-length", 48)  # fmt: skip
    shell.ok("merge", "run", "-o", "merged")
    before, after = (load(Path(name)).digests() for name in ("base", "merged"))
    assert {name: before[name] for name in ENDS if name in before} == {name: after.get(name) for name in made["ends"]}
    assert before != after
    shell.ok("export", "merged", "--format", "gguf,onnx", "-o", "dist")
    verified = shell.json("verify", "dist", "--require", "R4,torch_cpu,llama.cpp,onnxruntime")
    assert verified["passed"]
    exact: dict[tuple[str, str], int] = {}
    for check in verified["checks"]:
        if check["verdict"] == "exact":
            place = (check["rung"], check["subject"].split()[0])
            exact[place] = max(exact.get(place, 0), check["compared"])
    assert {c["subject"].split()[0] for c in verified["checks"] if c["rung"] == "R4"} == set(RUNTIMES)
    return made, exact


@pytest.mark.parametrize("grid", ["q8_0", "q4_0"])
def test_a_tied_head_is_proven_weight_by_weight(grid: str, shell: Any, road: Any, tiny_float_model: Path) -> None:
    made, exact = proven(shell, road.data, tiny_float_model, grid)
    assert made["ends"] == {EMBEDDING: grid}
    assert made["weights"] == road.said["base"]["weights"] + 4096 * 64
    assert {exact[rung, runtime] for rung in ("R1", "R2") for runtime in RUNTIMES} == {made["weights"]}


def test_of_an_untied_pair_onnx_looks_one_up_and_multiplies_the_other(shell: Any, road: Any, untied: Path) -> None:
    made, exact = proven(shell, road.data, untied, "q8_0")
    assert made["ends"] == {EMBEDDING: "q8_0", HEAD: "q8_0"}
    assert made["weights"] == road.said["base"]["weights"] + 2 * 4096 * 64
    everything = [exact["R1", runtime] for runtime in RUNTIMES] + [exact["R2", "torch_cpu"], exact["R2", "llama_cpp"]]
    assert set(everything) == {made["weights"]}
    assert exact["R2", "onnxruntime"] == made["weights"] - 4096 * 64  # its graph looks the embedding up


def test_the_plan_and_the_report_name_both_grids(shell: Any, tiny_float_model: Path) -> None:
    line = ("quantize", tiny_float_model, "-o", "base", "--ends", "q8_0")
    plain = shell.json("quantize", tiny_float_model, "-o", "base", "--dry-run")
    planned = shell.json(*line, "--dry-run")
    assert planned["tensors"] == plain["tensors"] | {EMBEDDING: "q8_0"}
    assert plain["bytes"] - planned["bytes"] == 4096 * 64 * (32 - 8.5) / 8
    said = shell.ok(*line).out
    assert "61,440 weights on q4_0" in said
    assert "262,144 weights on q8_0" in said


def test_ends_that_do_not_fit_are_named_with_their_grid(shell: Any, tiny_float_model: Path) -> None:
    line = ("quantize", tiny_float_model, "--ends", "tq2_0")
    assert f"kept in float, as their rows do not fit tq2_0's block: {EMBEDDING}\n" in shell.ok(*line, "-o", "a").out
    made = shell.json(*line, "-o", "b")
    assert (made["misfits"], made["ends"], made["weights"]) == ([EMBEDDING], {}, 61_440)
