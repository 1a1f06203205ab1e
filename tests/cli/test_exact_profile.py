"""export --profile exact and what verify says of it, as a user runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BASE = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"


@pytest.mark.parametrize("activations", ["int16", pytest.param("int8", marks=pytest.mark.slow)])
def test_verify_holds_every_runtime_to_the_bits_of_one(activations: str, command: Any, tmp_path: Path):
    """And PyTorch's float32 model to a bound: the program rounds what enters a matrix."""
    base, dist = tmp_path / "base", tmp_path / "dist"
    command("quantize", BASE, "-o", base)
    line = (base, "--format", "onnx", "--profile", "exact", "--activations", activations)
    planned = command("export", *line, "--dry-run", "--json", "-o", dist).json()["bytes"]["onnx"]
    command("export", *line, "-o", dist)
    assert abs(sum(file.stat().st_size for file in (dist / "onnx").iterdir()) - planned) <= planned // 100
    receipt = json.loads((dist / "edgeqaf.json").read_text("utf-8"))
    assert (receipt["asked"]["onnx"]["profile"], receipt["asked"]["onnx"]["activations"]) == ("exact", activations)
    said = command("verify", dist, "--json", "--require", "R4,onnxruntime,interpreter,torch_cpu").json()
    verdicts = {c["subject"]: c["verdict"] for c in said["checks"] if c["rung"] == "R4"}
    own = " int8" if activations == "int8" else ""
    assert verdicts == {
        f"interpreter cpu{own} on onnx": "bounded",
        f"onnxruntime exact{own} off on onnx": "exact",
        f"onnxruntime exact{own} on onnx": "exact",
    } | ({f"interpreter cuda{own} on onnx": "exact"} if torch.cuda.is_available() else {})


def test_sixteen_bits_unless_told_otherwise(shell: Any, road: Any) -> None:
    shell.ok("export", road.merged, "--format", "onnx", "--profile", "exact", "-o", "dist")
    receipt = json.loads(Path("dist", "edgeqaf.json").read_text("utf-8"))
    assert receipt["asked"]["onnx"]["activations"] == "int16"
    said = shell.json("verify", "dist", "--runtime", "torch")
    before = [c["verdict"] for c in said["checks"] if c["subject"] == "torch_cpu before and after merge, on onnx"]
    assert before == ["exact"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--activations", "float"), "profile exact with activations in float"),
        (("--form", "matmulnbits"), "profile exact in the form matmulnbits"),
    ],
)
def test_what_the_profile_does_not_take_is_refused(flags: tuple[str, str], says: str, shell: Any, road: Any) -> None:
    shell.refused(3, "export", road.merged, "--format", "onnx", "--profile", "exact", *flags, "-o", "dist", says=says)
    shell.refused(
        3, "export", road.merged, "--format", "onnx", "--activations", "int16", "-o", "dist",
        says="profile everyday with activations in int16",
    )  # fmt: skip
    assert not Path("dist").exists()
