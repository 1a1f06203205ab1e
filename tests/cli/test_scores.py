"""eval on every kind of folder and runtime, and the report made of it all."""

import json
from pathlib import Path
from typing import Any

import pytest

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
    shell.refused(3, "eval", road.base, "--data", "text.txt", says="no row has a prompt and a completion")
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
