"""A request that is wrong in itself: exit 2, with the name that is wrong and the one that was meant."""

from pathlib import Path
from typing import Any

import pytest

FINETUNE = ("finetune", "{base}", "--data", "{data}", "-o", "out")
REQUESTS: dict[tuple[str, ...], str] = {
    ("quantise", "x"): "Did you mean 'quantize'",
    ("quantize",): "Missing argument 'model'",
    ("quantize", "{float}"): "Missing option '--output'",
    ("quantize", "{float}", "-o", "out", "--gird", "q4_0"): "--grid",
    ("quantize", "{float}", "more", "-o", "out"): "unexpected extra argument",
    ("quantize", "{float}", "-o", "out", "--grid", "q4_O"): "unknown grid 'q4_O'",
    ("quantize", "{float}", "-o", "out", "--grid", "q8.O"): "did you mean q8_0",
    ("quantize", "{float}", "-o", "out", "--quantizer", "rnt"): "did you mean rtn",
    (*FINETUNE, "--method", "lowrnk"): "did you mean lowrank",
    (*FINETUNE, "--set", "omgea=1"): "option omgea",
    (*FINETUNE, "--set", "omega"): "'omega' is not KEY=VALUE",
    (*FINETUNE, "--method", "lowrank", "--rank", "65", "--dry-run"): "rank 65",
    (*FINETUNE, "--method", "lowrank", "--rank", "0", "--dry-run"): "rank",
    (*FINETUNE, "--steps", "0"): "'--steps'",
    (*FINETUNE, "--steps", "1e3"): "'--steps'",
    (*FINETUNE, "--holdout", "nan"): "'--holdout'",
    (*FINETUNE, "--seed", "-1"): "'--seed'",
    (*FINETUNE, "--seed", str(2**70)): "'--seed'",
    ("export", "{merged}", "-o", "out", "--format", "ggfu"): "did you mean gguf",
    ("export", "{merged}", "-o", "out", "--format", "gguf,"): "unknown exporter ''",
    ("export", "{merged}", "-o", "out", "--format", "onnx", "--tokenizer-from", "x"): "--tokenizer-from is for GGUF",
    ("export", "{merged}", "-o", "out", "--format", "onnx", "--split-max-size", "2G"): "--split-max-size is for GGUF",
    ("export", "{merged}", "-o", "out", "--format", "gguf", "--profile", "exact"): "--profile is for ONNX",
    ("export", "{merged}", "-o", "out", "--format", "gguf", "--accuracy-level", "1"): "--accuracy-level is for ONNX",
    ("export", "{merged}", "-o", "out", "--format", "gguf", "--form", "qdq"): "--form is for ONNX",
    ("export", "{merged}", "-o", "out", "--format", "gguf", "--activations", "float"): "--activations is for ONNX",
    ("export", "{merged}", "-o", "out", "--accuracy-level", "5"): "Invalid value for '--accuracy-level'",
    ("export", "{merged}", "-o", "out", "--form", "qdg"): "'qdg' is not one of",
    ("export", "{merged}", "-o", "out", "--split-max-size", "2"): "--split-max-size '2' is no size",
    ("export", "{merged}", "-o", "out", "--split-max-size", "2GB"): "--split-max-size '2GB' is no size",
    ("export", "{merged}", "-o", "out", "--split-max-size", "1.5G"): "--split-max-size '1.5G' is no size",
    ("export", "{merged}", "-o", "out", "--split-max-size", "0M"): "--split-max-size '0M' is no size",
    ("export", "{merged}", "-o", "out", "--split-max-size", "-2G"): "--split-max-size '-2G' is no size",
    ("verify", "{dist}", "--runtime", "lamma.cpp"): "did you mean llama_cpp",
    ("verify", "{dist}", "--runtime", ","): "names no runtime",
    ("verify", "{dist}", "--threads", "0"): "'--threads'",
    ("eval", "{merged}"): "--data and --tasks are the two things to score on",
    ("eval", "{merged}", "--data", "{data}", "--runtime", "llama.cpp"): "needs an exported one",
    ("eval", "{merged}", "--data", "{data}", "--configuration", "fast"): "--configuration is for exported",
    ("eval", "{dist}", "--data", "{data}", "--configuration", "fast"): "no configuration 'fast'",
    ("eval", "{base}", "--data", "{data}", "--requantize"): "--requantize is for a run folder",
    ("deploy", "{dist}", "--to", "card", "--format", "gguff"): "did you mean gguf",
    ("report", "-o", "out.html"): "Missing argument",
    ("devices", "show", "raspbery-pi-5"): "unknown device",
    ("devices", "lst"): "Did you mean 'list'",
}


@pytest.mark.parametrize("line", REQUESTS, ids=" ".join)
def test_a_wrong_request_is_named(line: tuple[str, ...], shell: Any, road: Any, tiny_float_model: Path) -> None:
    places = {name: getattr(road, name) for name in ("data", "base", "run", "merged", "dist")}
    filled = [part.format(float=tiny_float_model, **places) for part in line]
    shell.refused(2, *filled, says=REQUESTS[line])


def test_spelling_is_forgiven_where_it_is_plain(shell: Any, road: Any) -> None:
    said = shell.json("export", road.merged, "-o", "out", "--format", " GGUF , gguf ")
    assert said["artifacts"] == {"gguf": "model.gguf"}


def test_a_group_alone_shows_its_help(shell: Any) -> None:
    result = shell.run("devices")
    assert (result.code, result.err) == (2, "")
    assert "fit" in result.out
    assert "edgeqaf devices" in result.out
