"""demo: the whole road on a bundled model and task; nothing but a script over the other commands."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

BASE, TASK = "storyteller-6m", "home_assistant.py"


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to work in; finished parts are reused.")
    ] = Path("demo"),
    examples: Annotated[Path, typer.Option(help="The examples folder of a checkout.")] = Path("examples"),
    steps: Annotated[int, typer.Option(min=10, help="Training steps of each method.")] = 320,
) -> None:
    """Quantize, finetune, merge, export, verify and score a small model, printing every command."""
    import time

    from edgeqaf.console import say
    from edgeqaf.errors import Refused

    if not (examples / BASE / "config.json").is_file():
        raise Refused(
            f"{examples} has no {BASE}", "run from a checkout of edgeqaf, or name its examples: --examples FOLDER"
        )
    started = time.monotonic()
    for line in _script(output, examples, steps):
        say(f"\n$ {shlex.join(line)}")
        _run(line)
    scores = sorted((output / "scores").glob("*.json"))
    report = [
        "edgeqaf",
        "report",
        *(str(output / f"run-{m}") for m in ("codes", "lota", "lora")),
        str(output / "dist"),
    ]
    report += [item for score in scores for item in ("--scores", str(score))] + [
        "-o",
        str(output / "report.html"),
        "--force",
    ]
    say(f"\n$ {shlex.join(report)}")
    _run(report)
    _summary(output, scores, time.monotonic() - started)


def _script(out: Path, examples: Path, steps: int) -> list[list[str]]:
    """The commands, in order, as a user would type them."""
    train, test = str(out / "data" / "train.jsonl"), str(out / "data" / "test.jsonl")
    base, merged, dist, lora = (str(out / name) for name in ("base", "merged", "dist", "run-lora"))
    tune = ["--data", train, "--steps", str(steps), "--max-length", "128", "--resume"]

    def score(name: str, label: str, *arguments: str) -> list[str]:
        where = str(out / "scores" / f"{name}.json")
        return ["edgeqaf", "eval", *arguments, "--data", test, "--label", label, "-o", where]

    return [
        ["python", str(examples / TASK), "-o", str(out / "data")],
        ["edgeqaf", "quantize", str(examples / BASE), "-o", base, "--grid", "q4_0", "--force"],
        ["edgeqaf", "finetune", base, "-o", str(out / "run-codes"), "--lr", "0.1", *tune],
        ["edgeqaf", "merge", str(out / "run-codes"), "-o", merged, "--force"],
        ["edgeqaf", "export", merged, "--format", "gguf,onnx", "-o", dist, "--force"],
        ["edgeqaf", "verify", dist],
        ["edgeqaf", "finetune", base, "-o", str(out / "run-lota"), "--method", "lota", *tune],
        ["edgeqaf", "merge", str(out / "run-lota"), "-o", str(out / "merged-lota"), "--force"],
        ["edgeqaf", "finetune", base, "-o", lora, "--method", "lora", *tune],
        score("1-base", "untuned base", base),
        score("2-torch", "codes, tuned q4_0", dist, "--runtime", "torch"),
        score("3-onnxruntime", "codes, tuned q4_0", dist, "--runtime", "onnxruntime"),
        score("4-llama-cpp", "codes, tuned q4_0", dist, "--runtime", "llama.cpp"),
        score("5-lota", "LoTA-QAF, tuned q4_0", str(out / "merged-lota")),
        score("6-lora", "LoRA 16 bit, unmerged", lora),
        score("7-requantized", "LoRA merged, quantized again", lora, "--requantize"),
    ]


def _run(line: list[str]) -> None:
    """Run one command of the script in this process (Python starts once), stopping at the first failure."""
    import subprocess

    from edgeqaf import cli
    from edgeqaf.errors import EdgeqafError

    if line[0] == "edgeqaf":
        code = cli.run(line[1:])
    else:
        code = subprocess.run([sys.executable, *line[1:]], check=False).returncode
    if code:
        stopped = EdgeqafError(
            f"the demo stopped at: {shlex.join(line)}", "see the message above; run the demo again to go on"
        )
        stopped.exit_code = code
        raise stopped


def _summary(out: Path, scores: list[Path], seconds: float) -> None:
    import resource

    from edgeqaf.console import say, table
    from edgeqaf.jsonfile import read_json

    found: list[dict[str, Any]] = [read_json(path) for path in scores]
    rows = [(s["label"], s["runtime"], f"{s['matched']} of {s['rows']}", f"{s['exact_match']:.1%}") for s in found]
    say("")
    table("Exact match on unseen combinations", ("model", "runtime", "matched", "share"), rows)
    checks = read_json(out / "dist" / "verify.json")["checks"]
    ladder = [(c["rung"], c["subject"], c["verdict"], f"{c['compared']:,} {c['unit']}") for c in checks]
    table("Verification", ("rung", "who", "verdict", "compared"), ladder)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e6
    say(f"{seconds / 60:.1f} minutes, largest process {peak:.2f} GB; open {out / 'report.html'}")
