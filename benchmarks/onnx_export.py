"""An ONNX folder made and read back: how fast, in how much memory; of a Llama of random codes, embedding and all.

    python benchmarks/onnx_export.py --shape 1b
    python benchmarks/onnx_export.py --shape 8b --form matmulnbits
    python benchmarks/onnx_export.py --shape 1b --profile exact

Each step is a process of its own. Export and reading back get no more than 3 GB of memory (RLIMIT_DATA), of which
torch's trace takes what it needs. Rates are of the folder's bytes, through the page cache where it is large enough.
``load`` opens the folder in ONNX Runtime at accuracy level 1 and runs one token.
"""

import argparse
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import steps
from synthetic import SHAPES, make

from edgeqaf import checkpoint
from edgeqaf.exportoptions import ACTIVATIONS, ExportOptions, Form, OnnxOptions, Profile
from edgeqaf.imported import import_base
from edgeqaf.protocols import Artifact
from exporters.onnx import exporter

LIMIT = 3 * 10**9
LIMITED = ("trace", "export", "read back")


def step(what: str, folder: Path, shape: str, grid: str, options: OnnxOptions) -> None:
    """One step, in this process."""
    model = checkpoint.load(folder / "base") if what in LIMITED else None
    if what == "make":
        make(folder, shape, grid)
    elif what == "import":
        import_base(folder / "model.gguf", folder / "base")
        (folder / "model.gguf").unlink()
    elif what == "trace":
        from exporters.onnx.trace import OPERATORS, PRIMITIVES, trace

        assert model is not None
        trace(model.config, PRIMITIVES if options.profile == "exact" else OPERATORS)
    elif what == "export":
        assert model is not None
        exporter.export(replace(model, asked=ExportOptions(onnx=options)), folder / "onnx")
    elif what == "read back":
        assert model is not None
        found = Artifact("onnx", folder / "onnx", exporter.read_back(folder / "onnx"), folder)
        assert found.root == model.root
    else:
        run(folder / "onnx")


def run(folder: Path) -> None:
    """One token, in ONNX Runtime."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    cache = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values.")
    }
    feeds = {"input_ids": [[1]], "attention_mask": [[1]], "position_ids": [[0]]}
    logits = session.run(["logits"], {name: np.array(value) for name, value in feeds.items()} | cache)[0]
    assert np.isfinite(logits).all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--grid", default="q4_0")
    parser.add_argument("--form", choices=get_args(Form), default="qdq")
    parser.add_argument("--profile", choices=get_args(Profile), default="everyday")
    parser.add_argument("--dir", type=Path, help="where the files lie for the time")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        options = OnnxOptions(asked.profile, form=asked.form, activations=ACTIVATIONS[asked.profile][0])
        steps.measure(lambda: step(asked.step, asked.dir, asked.shape, asked.grid, options))
        return
    with tempfile.TemporaryDirectory(dir=asked.dir) as place:
        folder = Path(place)
        flags = ("shape", "grid", "form", "profile")
        line = [sys.executable, __file__, *(part for flag in flags for part in (f"--{flag}", getattr(asked, flag)))]
        for what in ("make", "import", *LIMITED, "load"):
            allow = (lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))) if what in LIMITED else None
            done = steps.run([*line, "--dir", place, "--step", what], preexec_fn=allow)
            size = sum(f.stat().st_size for f in (folder / "onnx").glob("*")) / 1e6
            rate = f"{size / done['seconds']:5.0f} MB/s" if size else ""
            print(f"{what:9} {size:7.0f} MB  {done['seconds']:6.1f} s  {rate}  peak {done['mb']:5.0f} MB", flush=True)


if __name__ == "__main__":
    main()
