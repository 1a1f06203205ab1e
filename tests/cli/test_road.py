"""The documented road on a real model and real data, and what each command says of it in JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Said = dict[str, Any]


@pytest.fixture(scope="module")
def said(shared: Path, command: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Said:
    here = tmp_path_factory.mktemp("documented")
    model, data = shared / "models" / "tinystories656k", shared / "data" / "viggo" / "train.csv"
    quick = ("--steps", 12, "--lr", 0.3, "--batch", 4, "--holdout", 0.003, "--threads", 1)
    lines = {
        "quantize": (model, "-o", here / "b"),
        "finetune": (here / "b", "--data", data, "-o", here / "r", *quick),
        "merge": (here / "r", "-o", here / "m"),
        "export": (here / "m", "--format", "gguf,onnx", "-o", here / "d"),
        "verify": (here / "d", "--require", "R2,torch,llama.cpp,onnxruntime"),
    }
    results = {}
    for verb, line in lines.items():
        result = command(verb, *line, "--json")
        assert (result.code, result.err) == (0, ""), verb
        results[verb] = result.json()
    return results


def test_every_weight_is_verified_in_every_runtime(said: Said) -> None:
    assert said["verify"]["passed"]
    exact = [(c["rung"], c["subject"].split()[0], c["compared"]) for c in said["verify"]["checks"]
             if c["verdict"] == "exact"]  # fmt: skip
    for runtime in ("torch_cpu", "llama_cpp", "onnxruntime"):
        for rung in ("R1", "R2"):
            assert (rung, runtime, said["quantize"]["weights"]) in exact


def test_the_root_is_handed_on(said: Said) -> None:
    assert said["finetune"]["parent"] == said["merge"]["parent"] == said["quantize"]["root"]
    assert said["merge"]["root"] == said["export"]["root"] == said["verify"]["root"] != said["quantize"]["root"]


def test_codes_moved_and_the_counts_agree(said: Said) -> None:
    assert said["merge"]["weights"] == said["quantize"]["weights"] == 393216
    assert 0.005 * 393216 < said["merge"]["moved"] < 393216
    assert said["quantize"]["misfits"] == []


def test_a_tuned_gguf_file_is_the_same_but_for_its_codes_and_verifies(shell: Any, shared: Path, road: Any) -> None:
    file = shared / "models" / "storyteller-6m-gguf" / "storyteller-Q4_K_M.gguf"
    planned = shell.json("quantize", file, "-o", "base", "--dry-run")
    assert set(planned["tensors"].values()) == {"q4_k", "q6_k", "float32"}
    base = shell.json("quantize", file, "-o", "base")
    assert base["weights"] == {"q4_k": 4259840, "q6_k": 1507328, "float32": 3328}
    shell.ok("finetune", "base", "--data", road.data, "-o", "run", "--steps", 8, "--lr", 0.3, "--batch", 2)
    assert "next: edgeqaf export merged --format gguf -o dist" in shell.ok("merge", "run", "-o", "merged").out
    moved = shell.json("diff", "merged", "base")["codes"]
    shell.ok("export", "merged", "--format", "gguf", "-o", "dist")
    before, after = (np.frombuffer(path.read_bytes(), np.uint8) for path in (file, Path("dist", "model.gguf")))
    assert len(before) == len(after)
    assert 0 < int((before != after).sum()) <= moved
    shell.ok("verify", "dist", "--require", "R2")
    shell.refused(2, "quantize", file, "-o", "other", "--grid", "q4_0", says="--grid q4_0 is for float models")
    shell.refused(2, "quantize", file, "-o", "other", "--ends", "q8_0", says="--ends q8_0 is for float models")


def test_diff_counts_what_merge_counted(shell: Any, road: Any) -> None:
    said = shell.json("diff", road.merged, road.base)
    assert (said["codes"], said["weights"]) == (road.said["merged"]["moved"], road.said["merged"]["weights"])
    assert said["roots"] == [road.said["merged"]["root"], road.said["base"]["root"]]
    assert shell.json("diff", road.base, road.base)["tensors"] == []


@pytest.mark.parametrize("name", ["base", "run", "merged", "dist"])
def test_inspect_tells_kind_and_lineage(name: str, shell: Any, road: Any) -> None:
    said = shell.json("inspect", getattr(road, name))
    assert said["kind"] == name
    assert said.get("root") == road.said[name].get("root")
    if name != "base":
        assert said["parent"] == road.said["base"]["root"]


def test_doctor_names_packages_and_runtimes(shell: Any) -> None:
    said = shell.json("doctor")
    assert said["packages"]["numpy"]
    assert said["runtimes"]["torch_cpu"]["version"]
    absent = shell.json("doctor", "--llama-lib", shell.folder)["runtimes"]["llama_cpp"]
    assert absent["version"] is None
    assert str(shell.folder) in absent["reason"]


@pytest.mark.parametrize("artifact", ["gguf", "onnx"])
def test_deploy_delivers_the_bytes_of_the_receipt(artifact: str, shell: Any, road: Any) -> None:
    said = shell.json("deploy", road.dist, "--to", "card", "--format", artifact)
    arrived = sorted(str(p.relative_to("card")) for p in Path("card").rglob("*") if p.is_file())
    assert arrived == sorted(["edgeqaf.json", *said["files"]])
    assert len(said["files"]) >= {"gguf": 1, "onnx": 4}[artifact]
    for file in arrived:
        assert Path("card", file).read_bytes() == (road.dist / file).read_bytes()


@pytest.mark.parametrize(
    ("line", "keys"),
    [(("quantize", "{float}"), {"bytes", "tensors"}), (("finetune", "{base}", "--data", "{data}"), {"memory_bytes"}),
     (("merge", "{run}"), {"parent", "tensors"}), (("export", "{merged}"), {"bytes"})],
    ids=lambda v: v[0] if isinstance(v, tuple) else "",
)  # fmt: skip
def test_a_dry_run_writes_nothing(
    line: tuple[str, ...], keys: set[str], shell: Any, road: Any, tiny_float_model: Path
) -> None:
    places = {"float": tiny_float_model, "base": road.base, "data": road.data, "run": road.run, "merged": road.merged}
    filled = [part.format(**places) for part in line]
    assert keys <= shell.json(*filled, "-o", "out", "--dry-run").keys()
    assert shell.ok(*filled, "-o", "out", "--dry-run").out
    assert shell.files() == {}


def test_a_merge_predicts_its_size(shell: Any, road: Any) -> None:
    line = ("merge", road.run, "--base", road.base, "-o", "out", "--dry-run")
    size = (road.merged / "model.safetensors").stat().st_size
    assert shell.json(*line)["bytes"] == size
    assert f"{size / 1e6:.1f} MB to write" in shell.ok(*line).out


def test_an_export_predicts_its_size(shell: Any, road: Any) -> None:
    planned = shell.json("export", road.merged, "-o", "out", "--dry-run")["bytes"]
    files = road.said["dist"]["files"]
    assert planned["gguf"] == files["model.gguf"]["bytes"]
    data = sum(file["bytes"] for name, file in files.items() if name.startswith("onnx/model."))
    assert abs(planned["onnx"] - data) < 0.3 * data


def test_a_tokenizer_is_taken_from_another_file(shell: Any, road: Any) -> None:
    own = road.dist / "model.gguf"
    shell.ok("export", road.merged, "-o", "out", "--format", "gguf", "--tokenizer-from", own)
    assert Path("out", "model.gguf").read_bytes() == own.read_bytes()
    shell.refused(3, "export", road.merged, "-o", "two", "--tokenizer-from", road.data, says="not GGUF")


def test_json_is_all_there_is_on_stdout(shell: Any, road: Any) -> None:
    """Plain lines without it, one object with it."""
    plain = shell.ok("inspect", road.base).out
    assert plain.startswith("kind: base\n")
    with pytest.raises(json.JSONDecodeError):
        json.loads(plain)


def test_the_receipt_keeps_how_the_onnx_folder_was_asked_for(shell: Any, road: Any) -> None:
    shell.ok("export", road.merged, "-o", "four", "--format", "onnx", "--accuracy-level", "4")
    receipt = json.loads(Path("four", "edgeqaf.json").read_text())
    everyday = {"profile": "everyday", "form": "qdq", "activations": "float"}
    assert receipt["asked"] == {"onnx": {**everyday, "accuracy_level": 4}}
    shell.ok("export", road.merged, "-o", "none", "--format", "gguf")
    assert json.loads(Path("none", "edgeqaf.json").read_text())["asked"] == {}
