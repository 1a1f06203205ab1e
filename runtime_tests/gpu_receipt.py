"""Everything that needs a GPU, run on a machine that has one, as a dated receipt:

    python -m runtime_tests.gpu_receipt -o docs/receipts [--places FOLDER] [--rehearse]

From a checkout, with a Python that has edgeqaf's packages and a CUDA build of torch. It makes the artifacts of a small
model, lets `edgeqaf verify --matrix` ask every runtime with a row under the heading GPU, runs the tests of the Triton
kernels, compares these at the shapes of a large model, and writes FOLDER/DATE-GPU.json and a line of FOLDER/README.md.
--rehearse does the same where there is no GPU, and calls itself that.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgeqaf import __version__, plugins
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.jsonfile import write_json
from edgeqaf.protocols import Runtime
from edgeqaf.staging import staged
from runtime_tests.ladder import PROGRAM, REFERENCE
from runtime_tests.matrix.families import family

CHECKOUT = Path(__file__).resolve().parents[1]
MODEL = CHECKOUT / "examples" / "storyteller-6m"
HEADING = "GPU"
LAST = 5  # lines kept of what a step says


@dataclass(frozen=True)
class Step:
    """One command: whether it ended well, and its last words."""

    what: str
    command: str
    passed: bool
    seconds: float
    said: tuple[str, ...]


def asked() -> list[str]:
    """Every runtime with a row under the heading GPU, and the two that decide on bits."""
    found = []
    for name in plugins.names("runtimes"):
        runtime: Runtime = plugins.find("runtimes", name)
        if name in (REFERENCE, PROGRAM) or any(family(name, c.name) == HEADING for c in runtime.configurations):
            found.append(name)
    return found


def gpu() -> dict[str, str]:
    """What torch and the driver say of the first GPU; raises RuntimeAbsent."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeAbsent(
            f"torch {torch.__version__} sees no CUDA GPU",
            "run on a machine with one, with torch's CUDA build; --rehearse runs the steps without",
        )
    about = torch.cuda.get_device_properties(0)
    driver = run("driver", ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "name": about.name, "capability": f"{about.major}.{about.minor}",
        "memory": f"{about.total_memory / 2**30:.0f} GiB", "driver": driver.said[0] if driver.passed else "unknown",
    }  # fmt: skip


def run(what: str, command: Sequence[str]) -> Step:
    """Run one command to its end; one that cannot be started has not passed."""
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
        passed, said = done.returncode == 0, (done.stdout + done.stderr).strip().splitlines()
    except OSError as error:
        passed, said = False, [str(error)]
    shown = " ".join(Path(part).name if part == sys.executable else part for part in command)
    return Step(what, shown, passed, round(time.monotonic() - started, 1), tuple(said[-LAST:]))


def artifacts(work: Path) -> list[Step]:
    """The everyday and both exact folders of the demo's model, under ``work``."""
    edgeqaf = (sys.executable, "-m", "edgeqaf")
    base, exact = str(work / "base"), ("--format", "onnx", "--profile", "exact")
    lines = {
        "base": ("quantize", str(MODEL), "--grid", "q4_0"),
        "everyday": ("export", base, "--format", "gguf,onnx"),
        "exact": ("export", base, *exact),
        "exact-int8": ("export", base, *exact, "--activations", "int8"),
    }
    return [
        run(name, [*edgeqaf, *line, "-o", str(work / name)])
        for name, line in lines.items()
        if not (work / name).exists()
    ]


def matrix(work: Path, more: Sequence[str]) -> tuple[Step, dict[str, Any]]:
    """Every GPU row on the three folders; an empty object where verify could not say anything."""
    folders = [str(work / name) for name in ("everyday", "exact", "exact-int8")]
    page = str(work / "matrix.html")
    line = ["verify", *folders, "--matrix", "--json", "--runtime", ",".join(asked()), "-o", page, *more]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "edgeqaf", *line], capture_output=True, text=True, check=False, cwd=CHECKOUT
    )
    said = tuple(done.stderr.strip().splitlines()[-LAST:])
    step = Step("matrix", f"edgeqaf {' '.join(line)}", done.returncode == 0, round(time.monotonic() - started, 1), said)
    try:
        return step, json.loads(done.stdout)
    except ValueError:
        return step, {}


def kernels(work: Path) -> tuple[list[Step], dict[str, int]]:
    """The Triton kernels: their tests, and their comparison at large shapes; and the tests' numbers."""
    results = work / "kernels.xml"
    tests = run("tests of kernels", [
        sys.executable, "-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider", f"--junitxml={results}",
    ])  # fmt: skip
    numbers = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if results.exists():
        suite = next(ElementTree.parse(results).iter("testsuite"))
        numbers = {key: int(suite.get(key, "0")) for key in numbers}
    large = run("kernels at large shapes", [sys.executable, "benchmarks/kernels_gpu.py"])
    return [tests, large], numbers


def on_gpu(found: dict[str, Any]) -> dict[str, int]:
    """How many cells under the heading GPU amount to what."""
    states = [c["state"] for row in found.get("rows", ()) if row["family"] == HEADING for c in row["cells"].values()]
    return {state: states.count(state) for state in sorted(set(states))}


def receipt(work: Path, more: Sequence[str], card: dict[str, str] | None) -> dict[str, Any]:
    """All steps, in order, as one JSON object; ``card`` is None in a rehearsal."""
    import torch

    steps = artifacts(work)
    asking, found = matrix(work, more)
    on_kernels, tests = kernels(work) if card else ([], {})
    commit = run("commit", ["git", "describe", "--always", "--dirty"])
    steps += [asking, *on_kernels]
    return {
        "kind": "gpu receipt", "rehearsal": card is None, "gpu": card, "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "passed": card is not None and all(step.passed for step in steps),
        "versions": {
            "edgeqaf": __version__, "commit": commit.said[0] if commit.passed else "", "torch": torch.__version__,
            "cuda": torch.version.cuda, "python": platform.python_version(),
        },
        "steps": [asdict(step) for step in steps], "kernel tests": tests, "gpu cells": on_gpu(found), "matrix": found,
    }  # fmt: skip


def line(made: dict[str, Any], file: str) -> str:
    """A receipt as a row of the table in README.md."""
    cells = ", ".join(f"{n} {state}" for state, n in made["gpu cells"].items()) or "none"
    tests = made["kernel tests"]
    ran = tests["tests"] - tests["skipped"]
    wrong = tests["failures"] + tests["errors"]
    verdict = "passed" if made["passed"] else "failed"
    about, torch = made["gpu"], made["versions"]["torch"]
    return (
        f"| [{made['date']}]({file}) | {about['name']}, driver {about['driver']} | {torch} | {cells} | "
        f"{ran - wrong} of {ran} | {verdict} |\n"
    )


def enter(readme: Path, row: str) -> None:
    """Add a row to the table at the end, and drop the paragraph that says there is none."""
    text = re.sub(r"\*\*No receipt exists yet\.\*\*.*?\n\n", "", readme.read_text("utf-8"), flags=re.DOTALL)
    with staged(readme, force=True) as part:
        part.write_text(text + row, "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if every step passed, 4 if one did not, 6 where there is no GPU."""
    parser = argparse.ArgumentParser(description="Run what needs a GPU, and write a receipt.")
    parser.add_argument("-o", "--output", type=Path, default=CHECKOUT / "docs" / "receipts")
    parser.add_argument("--work", type=Path, default=CHECKOUT / "gpu-receipt", help="Folder for artifacts and climbs.")
    parser.add_argument("--places", help="Folder of runtimes elsewhere.")
    parser.add_argument("--llama-lib", help="Folder with libllama.")
    parser.add_argument("--rehearse", action="store_true", help="Run without a GPU; the receipt says so.")
    given = parser.parse_args(arguments)
    named = {"--places": given.places, "--llama-lib": given.llama_lib}
    more = [part for flag, value in named.items() if value for part in (flag, value)]
    try:
        card = None if given.rehearse else gpu()
    except RuntimeAbsent as absent:
        print(f"error: {absent.cause}\n  fix: {absent.remedy}", file=sys.stderr)
        return absent.exit_code
    given.work.mkdir(parents=True, exist_ok=True)
    given.output.mkdir(parents=True, exist_ok=True)
    made = receipt(given.work.resolve(), more, card)
    name = f"{made['date']}-{card['name'].lower().replace(' ', '-') if card else 'rehearsal'}.json"
    with staged(given.output / name, force=True) as part:
        write_json(part, made)
    if card:
        enter(given.output / "README.md", line(made, name))
    for step in made["steps"]:
        print(f"{'passed' if step['passed'] else 'FAILED'} {step['seconds']:.0f} s: {step['command']}")
    print(f"{given.output / name}: cells on a GPU: {made['gpu cells']}")
    return 0 if made["passed"] or given.rehearse else 4


if __name__ == "__main__":
    sys.exit(main())
