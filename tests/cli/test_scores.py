"""eval on every kind of folder and runtime, and the report made of it all."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

EVERYDAY = Path(__file__).resolve().parents[2] / "examples" / "tasks" / "everyday.yaml"
SUBJECTS = {
    "base": ("base", ()),
    "run": ("run", ()),
    "merged": ("merged", ()),
    "requantized": ("lora", ("--requantize",)),
    "torch": ("dist", ("--runtime", "torch")),
    "onnxruntime": ("dist", ("--runtime", "onnxruntime")),
    "llama.cpp": ("dist", ("--runtime", "llama.cpp", "--threads", 1)),
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_folder_is_scored(subject: str, shell: Any, road: Any) -> None:
    name, options = SUBJECTS[subject]
    said = shell.json("eval", getattr(road, name), "--data", road.data, "--rows", 2, *options, "-o", "score.json")
    assert said["rows"] == 2
    assert said["exact_match"] == said["matched"] / 2
    assert said["root"] == {"run": None, "lora": None, "dist": road.said["merged"]["root"]}.get(
        name, road.said[name].get("root")
    )
    stored = json.loads(Path("score.json").read_text())
    assert [a["expected"] for a in stored.pop("answers")] == ["number: 0", "number: 1"]
    assert stored == said


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_folder_has_a_loss(subject: str, shell: Any, road: Any) -> None:
    name, options = SUBJECTS[subject]
    line = ("eval", getattr(road, name), "--data", road.data, "--rows", 3, *options, "--metric", "loss,exact-match")
    said = shell.json(*line, "-o", "score.json")
    assert said["rows"] == 3
    assert said["target_tokens"] > 3
    assert said["perplexity"] == math.exp(said["loss"])
    assert said["exact_match"] == said["matched"] / 3
    assert "bits_per_byte" not in said
    stored = json.loads(Path("score.json").read_text())
    assert len(stored.pop("answers")) == 3
    assert stored == said


def test_plain_text_gets_a_perplexity(shell: Any, road: Any) -> None:
    Path("text.txt").write_text("once upon a time there was a fox\n" * 30)
    line = ("eval", road.merged, "--data", "text.txt", "--max-length", 32)
    said = shell.json(*line)
    assert (said["max_length"], said["stride"], said["rows"]) == (32, 32, 1)
    overlapping = shell.json(*line, "--stride", 8, "--metric", "loss", "-o", "score.json")
    assert overlapping["target_tokens"] > said["target_tokens"]  # every token but the first now has one before it
    for found in (said, overlapping):
        assert found["perplexity"] == math.exp(found["loss"])
        assert found["bits_per_byte"] > 0
    assert json.loads(Path("score.json").read_text()) == overlapping
    out = shell.ok(*line).out
    assert f"loss {said['loss']:.4f} nats per token, perplexity {said['perplexity']:.3f}" in out
    assert f"{said['bits_per_byte']:.4f} bits per byte; {said['target_tokens']} tokens" in out


@pytest.mark.parametrize("options", [("--runtime", "torch"), ("--runtime", "onnxruntime")])
def test_tasks_of_lm_eval(options: tuple[str, ...], shell: Any, road: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="lm-eval is not installed: pip install 'edgeqaf[eval]'")
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'edgeqaf[eval]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache").resolve())
    line = ("eval", road.dist, *options, "--tasks", EVERYDAY, "--rows", 4)
    said = shell.json(*line, "-o", "score.json", "--shots", 1)
    assert said["tasks"]["everyday"]["rows"] == 4
    assert said["root"] == road.said["merged"]["root"]
    stored = json.loads(Path("score.json").read_text())
    assert len(stored.pop("samples")["everyday"]) == 4
    assert stored == said
    everyday = next(row for row in shell.ok(*line, "--shots", 1).out.splitlines() if "everyday" in row)
    assert f"{said['tasks']['everyday']['acc']:.4f}" in everyday
    assert f"{said['tasks']['everyday']['acc_stderr']:.4f}" in everyday


def test_a_request_that_cannot_be_met_is_refused_before_work(shell: Any, road: Any) -> None:
    data = ("--data", road.data)
    shell.refused(2, "eval", road.base, says="--data and --tasks are the two things to score on")
    shell.refused(2, "eval", road.base, *data, "--tasks", EVERYDAY, says="pass one of them")
    shell.refused(2, "eval", road.base, *data, "--shots", 2, says="--shots 2 is for --tasks")
    shell.refused(2, "eval", road.base, "--tasks", EVERYDAY, "--metric", "loss", says="--metric loss is for --data")
    shell.refused(2, "eval", road.base, *data, "--metric", "bleu", says="unknown metric 'bleu'")
    shell.refused(2, "eval", road.base, *data, "--metric", "loss", "--max-length", 4096, says="context of 1024")
    loss = ("--metric", "loss", "--max-length", 5)
    shell.refused(3, "eval", road.base, *data, *loss, says="tokens long, and a window 5")
    shell.refused(2, "eval", road.base, *data, *loss, "--stride", 2, says="--stride 2 is for plain text")


@pytest.mark.parametrize(
    ("package", "options"), [("rouge_score", ("--metric", "rouge")), ("lm_eval", ("--tasks", "task.yaml"))]
)
def test_a_package_that_is_absent_is_named(
    package: str, options: tuple[str, ...], shell: Any, road: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("edgeqaf.harness")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    data = () if "--tasks" in options else ("--data", road.data)
    result = shell.refused(6, "eval", road.base, *data, *options, says=package)
    assert "pip install 'edgeqaf[eval]'" in result.err


def test_a_run_answers_as_what_was_merged_and_exported(shell: Any, road: Any) -> None:
    """The same integers and the same code: the same text, token for token."""
    answers = []
    for folder in (road.run, road.merged, road.dist):
        shell.ok("eval", folder, "--data", road.data, "--rows", 3, "-o", "score.json")
        answers.append([a["found"] for a in json.loads(Path("score.json").read_text())["answers"]])
    assert answers[0] == answers[1] == answers[2]
    assert any(answers[0])


def test_what_cannot_be_scored_is_refused(shell: Any, road: Any) -> None:
    line = ("--data", road.data, "--rows", 1)
    shell.refused(3, "eval", road.run, *line, "--requantize", says="merges exactly")
    Path("text.txt").write_text("once upon a time")
    text = ("--data", "text.txt", "--metric", "exact-match")
    shell.refused(3, "eval", road.base, *text, says="no row has a prompt and a completion")
    shell.refused(3, "eval", road.data.parent, *line, says="has no edgeqaf.json")


def test_odd_prompts_are_answered(shell: Any, road: Any) -> None:
    rows = [{"prompt": p, "completion": "x"} for p in ("", "\x00\ufffd\U0001f600 </s><s>", "word " * 2000)]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert shell.json("eval", road.dist, "--data", "odd.jsonl", "--runtime", "torch")["rows"] == 3


def test_a_report_is_one_page(shell: Any, road: Any) -> None:
    shell.ok("eval", road.merged, "--data", road.data, "--rows", 1, "--label", "<b>tuned</b>", "-o", "score.json")
    line = ("report", road.run, road.dist, "--scores", "score.json", "-o", "page.html")
    said = shell.json(*line)
    assert said["verdict"] == "open"  # nothing was verified here
    page = Path("page.html").read_text("utf-8")
    assert "&lt;b&gt;tuned&lt;/b&gt;" in page
    assert "<b>tuned" not in page
    shell.refused(2, *line, says="page.html already exists")
    shell.ok(*line, "--force")
    assert Path("page.html").read_text("utf-8") == page
    shell.refused(3, "report", road.base, "-o", "other.html", says="is a base folder")
    shell.refused(2, "report", road.dist, road.dist, "-o", "other.html", says="both dist folders")
    shell.refused(3, "report", road.run, "--scores", road.data, "-o", "other.html", says="not readable JSON")
