"""llama.cpp's logits, computed again from token ids, at many positions of real text: how many differ in a bit?

    edgeqaf quantize examples/storyteller-6m -o base
    edgeqaf export base -o dist --format gguf
    python benchmarks/llama_cpp_positions.py dist/model.gguf --text ../shared/data/tinystories_10k.txt --kit KIT

KIT is a folder of llama.cpp as `make kits` fetches it (.venv/places/llama.cpp/linux-x64); each of its CPU variants
has a process of its own. The text is cut into windows, of 256 and of 48 tokens by turns, each evaluated in one piece
(flash attention goes by tiles in the long ones, and by rows in the short ones) and followed by eight tokens one by one.
Printed for each model, variant, way of holding the matrices and setting: positions, logits, those that differ; values
of the operations before them, those that differ; seconds, the library's own two runs included; and products of weights
a second.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from edgeqaf import plugins
from edgeqaf.child import stream
from edgeqaf.console import progress, say
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, RuntimeOptions
from edgeqaf.report import compare_bits

WINDOWS, MORE, READ = (256, 48), 8, 6  # tokens, tokens, characters to a position
Counts = tuple[str, Counter[str], float]  # setting, what was counted, seconds


def windows(tokens: Sequence[int], positions: int) -> list[Sequence[int]]:
    """Pieces of the text with so many tokens, or more, in all."""
    found: list[Sequence[int]] = []
    start = 0
    while start < min(positions, len(tokens)):
        size = WINDOWS[len(found) % len(WINDOWS)]
        found.append(tokens[start : start + size])
        start += size
    return found


def opened(path: Path) -> Artifact:
    return Artifact("gguf", path, plugins.find("exporters", "gguf").read_back(path), path.parent)


def measure(path: Path, text: Path, kit: Path, threads: int, place: str, positions: int) -> Iterator[Counts]:
    """One count for each window and setting."""
    artifact, runtime = opened(path), plugins.find("runtimes", "llama_cpp")
    configuration = next(c for c in runtime.configurations if c.name == place)
    expected = {name: q for name, _, q in artifact.quantized()}
    with runtime.open(artifact, configuration, RuntimeOptions(kit, threads)) as session:
        tokens = session.encode(text.read_text("utf-8")[: READ * positions])
        for window in windows(tokens, positions):
            began = time.monotonic()
            for made in session.reproduce(window, MORE, expected):
                ended = time.monotonic()
                different = int(compare_bits(made.expected, made.found).sum())
                counted = Counter(positions=len(made.found), logits=made.found.size, wrong=different)
                counted.update(before=made.compared, wrong_before=made.differing)
                yield made.setting, counted, ended - began
                began = ended


def variant(kit: Path, name: str, folder: Path) -> Path:
    """llama.cpp with one CPU variant alone."""
    for file in kit.glob("*.so*"):
        if "-cpu-" not in file.name or file.stem == f"libggml-cpu-{name}":
            (folder / file.name).symlink_to(file.resolve())
    return folder


def line(path: Path, who: str, place: str, arguments: argparse.Namespace) -> None:
    weights = sum(prod(shape) for _, shape in opened(path).outline().values())
    counts: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, progress(f"{path.parent.name} {who}", arguments.positions) as advance:
        kit = variant(arguments.kit, who, Path(folder))
        task = path, arguments.text, kit, arguments.threads, place, arguments.positions
        for setting, counted, took in stream(who, measure, *task):
            counts.setdefault(setting, Counter()).update(counted)
            seconds[setting] += took
            advance(min(counts[setting]["positions"], arguments.positions))
    for setting, c in counts.items():
        speed = c["positions"] * weights / seconds[setting] / 1e9
        numbers = "positions", "logits", "wrong", "before", "wrong_before"
        cells = [path.parent.name, who, place, setting, *(f"{c[name]:,}" for name in numbers)]
        say(f"| {' | '.join([*cells, f'{seconds[setting]:.0f}', f'{speed:.2f}'])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--matrices", default="plain,repack")
    parser.add_argument("--variants", default="x64,haswell,skylakex")
    parser.add_argument(
        "--positions", type=int, default=10_000, help="of the text, for each model, variant and setting"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    say("| model | CPU variant | matrices | setting | positions | logits | differ | before | differ | s | GMAC/s |")
    say("|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for path in arguments.models:
        for who in arguments.variants.split(","):
            for place in arguments.matrices.split(","):
                try:
                    line(path, who, place, arguments)
                except RuntimeAbsent as absent:
                    say(f"{path.parent.name} {who}: {absent}")


if __name__ == "__main__":
    main()
