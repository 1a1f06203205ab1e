"""Our ONNX folder beside what onnxruntime-genai's own model builder makes of the same float model: tokens a second.

    make consumers
    python benchmarks/onnx_runtimes.py
    python benchmarks/onnx_runtimes.py --threads 2 --prompt 1000 --rounds 5

The model is a Llama of random weights (`synthetic.py`). `edgeqaf` is our export of it on q4_0; its embedding, which is
the head too, stays float32, and as `ends` is on q4_0 too (`--ends q4_0`). The builder (`-p int4 -e cpu`) quantizes
embedding and head as well; as `float head` it leaves the head alone. Every contestant is a process of its own. They
take turns: in each round each reads the same prompt and generates some tokens, one at a time. A ratio is the median,
over the rounds, of the speed of a contestant over that of the builder's graph of the same accuracy level with a float
head (of level 1 for float32). The peak of memory is that of a process which loads the folder and does all its rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import steps
from synthetic import SHAPES, floats

HERE = Path(__file__).resolve().parent
TURN = HERE / "onnx_turn.py"
BUILDER = {
    "builder": (),
    "builder-head": ("--extra_options", "nodes_to_exclude=/lm_head/MatMul"),
    "builder-head-1": ("--extra_options", "nodes_to_exclude=/lm_head/MatMul", "accuracy_level=1"),
}


@dataclass(frozen=True)
class Contestant:
    """folder: what it loads; level: accuracy level given to ONNX Runtime, where the file does not say it."""

    name: str
    folder: str
    runtime: str
    level: str | None
    beside: str | None = None  # the contestant that its ratio is of


FOUR, ONE = "builder, float head, level 4, genai", "builder, float head, level 1, genai"
CONTESTANTS = (
    Contestant("edgeqaf, level 4, ORT", "edgeqaf/onnx", "ort", "4", FOUR),
    Contestant("edgeqaf, level 4, genai", "edgeqaf/onnx", "genai", "4", FOUR),
    Contestant("edgeqaf, ends, level 4, ORT", "edgeqaf-ends/onnx", "ort", "4", FOUR),
    Contestant("edgeqaf, ends, level 4, genai", "edgeqaf-ends/onnx", "genai", "4", FOUR),
    Contestant(FOUR, "builder-head", "genai", None, FOUR),
    Contestant("builder, level 4, genai", "builder", "genai", None, FOUR),
    Contestant("edgeqaf, level 1, ORT", "edgeqaf/onnx", "ort", "1", ONE),
    Contestant("edgeqaf, level 1, genai", "edgeqaf/onnx", "genai", "1", ONE),
    Contestant("edgeqaf, ends, level 1, genai", "edgeqaf-ends/onnx", "genai", "1", ONE),
    Contestant(ONE, "builder-head-1", "genai", None, ONE),
    Contestant("float32, ORT", "float", "ort", None, ONE),
)


def step(folder: Path, shape: str) -> None:
    """The float model and its ONNX folder, in this process: the memory of its parent would be its children's peak."""
    from edgeqaf.checkpoint import QModel
    from edgeqaf.source import FloatModel
    from exporters.onnx import exporter

    (folder / "model").mkdir()
    floats(folder / "model", shape)
    source = FloatModel(folder / "model")
    exporter.export(QModel(source.config, dict(source), source.folder), folder / "float")


def build(folder: Path, shape: str, genai: str) -> None:
    """Every folder of `CONTESTANTS`; prints how long the commands take, in how much memory."""
    steps.run([sys.executable, __file__, "--shape", shape, "--dir", str(folder), "--step", "floats"])
    ours = [sys.executable, "-m", "edgeqaf"]
    there = [genai, "-c", "import onnxruntime_genai as og; print(og.__path__[0])"]
    package = Path(subprocess.run(there, check=True, capture_output=True, text=True).stdout.strip())
    absmax = ("--quantizer", "absmax")
    theirs = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu", "-i", "model"]
    commands = {
        "edgeqaf quantize": [*ours, "quantize", "model", "-o", "base", *absmax],
        "edgeqaf export": [*ours, "export", "base", "-o", "edgeqaf", "--format", "onnx"],
        "edgeqaf quantize, ends": [*ours, "quantize", "model", "-o", "ends", *absmax, "--ends", "q4_0"],
        "edgeqaf export, ends": [*ours, "export", "ends", "-o", "edgeqaf-ends", "--format", "onnx"],
        **{name: [*theirs, "-o", name, "-c", "cache", *more] for name, more in BUILDER.items()},
    }
    # The builder needs torch and transformers, which are here; only onnxruntime-genai is from its environment.
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(package.parent)]))
    print(f"{'command':22} {'seconds':>8} {'peak MB':>8}")
    for name, line in commands.items():
        start = time.perf_counter()
        process = subprocess.Popen(line, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=-3, stderr=-3)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, line
        print(f"{name:22} {time.perf_counter() - start:8.1f} {usage.ru_maxrss / 1024:8.0f}", flush=True)


def rounds(asked: argparse.Namespace, folder: Path) -> tuple[dict[str, list[Mapping[str, Any]]], dict[str, float]]:
    """What each contestant took in each round, in seconds, and the peak of its memory in MB."""
    job = {"threads": asked.threads, "prompt": asked.prompt, "tokens": asked.tokens}
    taken: dict[str, list[Mapping[str, Any]]] = {c.name: [] for c in CONTESTANTS}
    with ExitStack() as stack:
        turns = {}
        for c in CONTESTANTS:
            told = json.dumps(job | {"folder": str(folder / c.folder), "runtime": c.runtime, "level": c.level})
            process = subprocess.Popen([asked.genai, str(TURN), told], stdin=-1, stdout=-1, text=True)
            turns[c.name] = stack.enter_context(process)
        for number in range(asked.rounds + 1):
            for name, process in turns.items():
                found = _turn(process)
                if number:  # the first warms up
                    taken[name].append(found)
        for process in turns.values():
            process.stdin.close()
    return taken, {name: turns[-1]["mb"] for name, turns in taken.items()}


def _turn(process: "subprocess.Popen[str]") -> Mapping[str, Any]:
    assert process.stdin
    assert process.stdout
    print(file=process.stdin, flush=True)
    found: Mapping[str, Any] = json.loads(process.stdout.readline())
    return found


def lines(taken: Mapping[str, list[Mapping[str, Any]]], peaks: Mapping[str, float], prompt: int) -> Iterator[str]:
    """The table."""
    yield f"{'tokens a second':38} {'decode':>7} {'best':>7} {'ratio':>6} {'prefill':>8} {'ratio':>6} {'peak MB':>8}"
    for c in CONTESTANTS:
        ours, theirs = taken[c.name], taken[c.beside or c.name]
        ratio = {
            k: statistics.median(b[k] / a[k] for a, b in zip(ours, theirs, strict=True)) for k in ("one", "prompt")
        }
        one = [t["one"] for t in ours]
        yield (
            f"{c.name:38} {1 / statistics.median(one):7.1f} {1 / min(t['best'] for t in ours):7.1f} {ratio['one']:6.2f}"
            f" {prompt / min(t['prompt'] for t in ours):8.0f} {ratio['prompt']:6.2f} {peaks[c.name]:8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=16, help="to generate")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--genai", default=str(HERE.parent / ".venv" / "genai" / "bin" / "python"))
    parser.add_argument("--dir", type=Path, help="where the folders lie; those that are there are not made again")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        steps.measure(lambda: step(asked.dir, asked.shape))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = asked.dir or Path(place)
        if not (folder / "model").exists():
            build(folder, asked.shape, asked.genai)
        print(f"{asked.threads} threads, a prompt of {asked.prompt}, {asked.tokens} tokens, {asked.rounds} rounds")
        print("\n".join(lines(*rounds(asked, folder), asked.prompt)))


if __name__ == "__main__":
    main()
