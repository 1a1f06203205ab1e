"""A GGUF file in and out, and a merge between: how fast, in how much memory; on a Llama of random codes.

The shape is a real one's (`synthetic.py`). What is merged is a run of the method ``codes`` in which 5 % of the codes
moved by one; what is exported is the merged model.

    python benchmarks/gguf_files.py --shape 1b --llama-lib DIR
    python benchmarks/gguf_files.py --shape 8b --limited       # 4.5 GB of file, 29 GB of disk in all, minutes

Each step is a process of its own, whose peak memory is its own. Rates are of the GGUF file's bytes, read from and
written to the page cache where it is large enough. ``limit`` is three times the largest tensor as the step holds it
(its codes a byte each) plus 400 MB; with ``--limited`` the system gives import, merge and export no more than that
(RLIMIT_DATA). With ``--llama-lib`` llama.cpp makes Q4_0 of the same model in float16, with as many threads as there are
processors, between two exports.
"""

import argparse
import filecmp
import resource
import sys
import tempfile
from pathlib import Path

import steps
from synthetic import SHAPES, halves, make, tune

from edgeqaf import checkpoint
from edgeqaf.imported import import_base
from edgeqaf.runs import threads
from exporters.gguf import exporter

LIMITED = ("import", "merge", "export")  # what is held to the limit


def step(what: str, folder: Path, shape: str, grid: str, lib: Path | None) -> None:
    """One step, in this process."""
    if what == "make":
        make(folder, shape, grid)
    elif what == "import":
        import_base(folder / "model.gguf", folder / "base")
    elif what == "tune":
        tune(folder / "base", folder / "run")
    elif what == "merge":
        from edgeqaf.merge import merge

        merge(folder / "run", folder / "merged")
    elif what == "back":
        exporter.export(checkpoint.load(folder / "base"), folder / "again.gguf")
    elif what == "halves":
        halves(folder / "model.gguf", folder / "halves.gguf")
    elif what == "llama.cpp":
        from runtime_tests.ggml.quantize import _quantize, file_types

        files = str(folder / "halves.gguf"), str(folder / "theirs.gguf")
        list(_quantize(lib, *files, file_types()["Q4_0"], threads(), True, {}))
    else:
        (folder / "tuned.gguf").unlink(missing_ok=True)
        exporter.export(checkpoint.load(folder / "merged"), folder / "tuned.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--grid", default="q4_0")
    parser.add_argument("--dir", type=Path, help="where the files lie for the time")
    parser.add_argument("--limited", action="store_true", help="hold the steps to the limit")
    parser.add_argument("--llama-lib", type=Path, help="folder with libllama")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        steps.measure(lambda: step(asked.step, asked.dir, asked.shape, asked.grid, asked.llama_lib))
        return
    with tempfile.TemporaryDirectory(dir=asked.dir) as place:
        compare(asked, Path(place))


def compare(asked: argparse.Namespace, folder: Path) -> None:
    """Every step, in order, each reported when it ends."""
    line = [sys.executable, __file__, "--shape", asked.shape, "--grid", asked.grid, "--dir", str(folder)]
    line += ["--llama-lib", str(asked.llama_lib)] if asked.llama_lib else []
    _, hidden, inner, _, _, vocabulary = SHAPES[asked.shape]
    limit = 3 * max(vocabulary * hidden, inner * hidden) + 400 * 2**20
    theirs = ("halves", "export", "llama.cpp", "export", "llama.cpp", "export") if asked.llama_lib else ("export",)
    taken: dict[str, list[float]] = {}
    for what in ("make", "import", "back", "tune", "merge", *theirs):
        held = asked.limited and what in LIMITED
        allow = (lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))) if held else None
        done = steps.run([*line, "--step", what], preexec_fn=allow)
        size, seconds = (folder / "model.gguf").stat().st_size / 1e6, done["seconds"]
        taken.setdefault(what, []).append(seconds)
        note = f"  peak {done['mb']:5.0f} MB" + (f", limit {limit / 2**20:.0f}" if what in LIMITED else "")
        print(f"{what:9} {size:7.0f} MB  {seconds:6.1f} s  {size / seconds:5.0f} MB/s{note}", flush=True)
        if what == "back":
            same = filecmp.cmp(folder / "model.gguf", folder / "again.gguf", shallow=False)
            print(f"imported and exported, the file is the same, byte for byte: {same}")
            (folder / "again.gguf").unlink()
    if asked.llama_lib:
        print(f"llama.cpp takes {min(taken['llama.cpp']) / min(taken['export']):.1f} times as long as export")


if __name__ == "__main__":
    main()
