"""R0 to R2 of a large artifact, a runtime at a time: how long, in how much memory; of a Llama of random codes.

    python benchmarks/verify_large.py --shape 1b
    python benchmarks/verify_large.py --shape 1b --runtime llama.cpp --llama-lib .venv/places/llama.cpp/linux-x64

Each line is one ``edgeqaf verify DIST --up-to R2 --runtime NAME --memory 3`` on a folder with one artifact, all its
configurations, two at a time, on one thread each. ``peak`` is the largest sum over its processes of what each has in
memory (PSS: what several share counts once), sampled; ``cpu`` the processor time of all. On a machine with other work
to do, seconds say little and processor time more.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic import SHAPES, make

from edgeqaf.imported import import_base

FORMATS = {"gguf": ("torch", "llama.cpp"), "onnx": ("onnxruntime",)}


def verify(dist: Path, runtime: str, more: list[str]) -> str:
    """Times and memory of one run."""
    line = [sys.executable, "-m", "edgeqaf", "verify", str(dist), "--up-to", "R2", "--memory", "3"]
    started, peak, cpu = time.monotonic(), 0, 0.0
    process = subprocess.Popen([*line, "--runtime", runtime, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None:
        tree = _tree(process.pid)
        peak = max(peak, sum(map(_resident, tree)))
        cpu = max(cpu, sum(map(_seconds, tree)))
        time.sleep(0.2)
    seconds = time.monotonic() - started
    assert process.stdout is not None
    assert process.returncode == 0, process.stdout.read().decode()
    return f"{seconds:6.1f} s  cpu {cpu:6.1f} s  peak {peak / 1e6:5.2f} GB"


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _resident(process: int) -> int:
    """kB of a process in memory, its share of what others have too."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _seconds(process: int) -> float:
    """Of processor time, with that of its children that have ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--grid", default="q4_0")
    parser.add_argument("--runtime", help="one of them; default: each")
    parser.add_argument("--dir", type=Path, help="where the files lie for the time")
    asked, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=asked.dir) as place:
        folder = Path(place)
        make(folder, asked.shape, asked.grid)
        import_base(folder / "model.gguf", folder / "base")
        (folder / "model.gguf").unlink()
        for format, runtimes in FORMATS.items():
            dist = folder / f"dist-{format}"
            export = ["export", str(folder / "base"), "--format", format, "-o", str(dist)]
            subprocess.run([sys.executable, "-m", "edgeqaf", *export], check=True, stdout=subprocess.DEVNULL)
            for runtime in runtimes if asked.runtime is None else set(runtimes) & {asked.runtime}:
                print(f"{runtime:12} {verify(dist, runtime, more)}", flush=True)


if __name__ == "__main__":
    main()
