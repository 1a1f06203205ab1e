"""`edgeqaf quantize --quantizer`: each with its own options, and none of another's."""

from pathlib import Path
from typing import Any

import pytest

WORDS = "a fox and a frog sat by the river "


def test_gptq_makes_a_base(shell: Any, tiny_float_model: Path) -> None:
    Path("calib.txt").write_text(WORDS * 80, "utf-8")
    line = ("quantize", tiny_float_model, "--quantizer", "gptq", "--calib", "calib.txt", "--grid", "q3_0")
    assert shell.json(*line, "-o", "base", "--dry-run")["tensors"]["model.layers.0.mlp.up_proj.weight"] == "q3_0"
    made = shell.json(*line, "-o", "base", "--calib-tokens", 600, "--damping", 0.05)
    rounded = shell.json("quantize", tiny_float_model, "-o", "rounded", "--grid", "q3_0")
    assert made["root"] != rounded["root"]
    assert {k: made[k] for k in ("grid", "weights", "misfits")} == {
        k: rounded[k] for k in ("grid", "weights", "misfits")
    }
    assert shell.json("inspect", "base")["root"] == made["root"]


REFUSED = {
    ("--quantizer", "gptq"): "GPTQ needs a calibration text",
    ("--quantizer", "gptq", "--calib", "calib.txt", "--damping", "0"): "--damping 0.0 is no positive number",
    ("--quantizer", "gptq", "--calib", "calib.txt", "--grid", "q4_k"): "q4_k keeps its scales in two levels",
    ("--calib", "calib.txt"): "--calib is no option of the quantizer rtn",
    ("--quantizer", "absmax", "--damping", "1"): "--damping is no option of the quantizer absmax",
    ("--quantizer", "llama.cpp"): "takes --type, and none is given",
    ("--type", "Q4_K_M", "--grid", "q4_0"): "--grid is no option of the quantizer llama_cpp",
    ("--type", "Q4_K_M", "--dry-run"): "llama.cpp chooses each tensor's type as it goes",
    ("--quantizer", "rtn", "--type", "Q4_K_M"): "--type is no option of the quantizer rtn",
    ("--type", "Q4_K_M", "--ends", "q8_0"): "--ends is no option of the quantizer llama_cpp",
    ("--ends", "q4_k"): "q4_k keeps its scales in two levels",
    ("--ends", "q9_0"): "'q9_0'",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_a_quantizer_cannot_do_is_refused(options: tuple[str, ...], shell: Any, tiny_float_model: Path) -> None:
    Path("calib.txt").write_text(WORDS * 80, "utf-8")
    shell.refused(2, "quantize", tiny_float_model, "-o", "base", *options, says=REFUSED[options])


def test_too_short_a_text_is_refused(shell: Any, tiny_float_model: Path) -> None:
    Path("short.txt").write_text("a fox", "utf-8")
    line = ("quantize", tiny_float_model, "-o", "base", "--quantizer", "gptq", "--calib", "short.txt")
    shell.refused(3, *line, says="calibration needs 512 tokens at least: short.txt has")
