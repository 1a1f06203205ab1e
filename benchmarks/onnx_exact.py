"""What the exact profile costs beside the everyday ONNX folder: loss, greedy agreement and speed.

    edgeqaf quantize ../shared/models/storyteller-6m -o base
    python benchmarks/onnx_exact.py base --text ../shared/data/tinystories_sample.txt
    python benchmarks/onnx_exact.py --shape 125m
    python benchmarks/onnx_exact.py --shape deep --load

With --text, the first 60,000 characters in windows of 256 tokens. With --shape, a random Llama: tokens a second of a
prompt of 64 and of single tokens after it, the programs in turn, the best and the median of the rounds. With --load,
the seconds that a session takes to open, as it comes and without ONNX Runtime's planning which values share memory.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import synthetic
from onnx_levels import WINDOW, log_softmax, run, session

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Tensor
from edgeqaf.exportoptions import Activations, ExportOptions, OnnxOptions
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.source import EMBEDDING, HEAD
from edgeqaf.tokenizer import Tokenizer
from exporters.onnx import exporter

PROMPT, STEPS = 64, 8
BITS: Mapping[str, Activations] = {"exact, 16 bits": "int16", "exact, 8 bits": "int8"}


def programs(model: QModel, place: Path, threads: int) -> dict[str, Any]:
    """Sessions by name; the everyday one at level 1 is the first."""
    everyday = exporter.export(model, place / "everyday")
    found = {f"everyday, level {level}": session(everyday / "model.onnx", level, threads) for level in "14"}
    for name, activations in BITS.items():
        asked = replace(model, asked=ExportOptions(onnx=OnnxOptions("exact", activations=activations)))
        found[name] = session(exporter.export(asked, place / name) / "model.onnx", "1", threads)
    return found


def losses(found: dict[str, Any], ids: np.ndarray) -> None:
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    first: list[np.ndarray] = []
    for name, each in found.items():
        loss, chosen = 0.0, []
        for window in windows:
            logits = run(each, window[None])[0][0]
            loss -= log_softmax(logits)[np.arange(WINDOW - 1), window[1:]].mean() / len(windows)
            chosen.append(logits.argmax(-1))
        if not first:
            first, base = chosen, loss
        same = np.mean([(a == b).mean() for a, b in zip(chosen, first, strict=True)])
        print(f"{name:20} loss {loss:.6f}  perplexity {np.expm1(loss - base):+.4%}  greedy {same:.2%}", flush=True)


def speeds(found: dict[str, Any], vocabulary: int, rounds: int) -> None:
    ids = np.random.default_rng(0).integers(3, vocabulary, (1, PROMPT))
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, each in found.items():
            start = time.perf_counter()
            _, *cache = run(each, ids)
            middle = time.perf_counter()
            for _ in range(STEPS):
                _, *cache = run(each, ids[:, :1], cache)
            rates[name].append((PROMPT / (middle - start), STEPS / (time.perf_counter() - middle)))
    base = np.max(next(iter(rates.values())), 0)
    for name, each_rates in rates.items():
        best, median = np.max(each_rates, 0), np.median(each_rates, 0)
        ratio = base / best
        print(
            f"{name:20} prompt {best[0]:6.1f} ({median[0]:6.1f}) tokens/s, {ratio[0]:.2f} x the time; "
            f"single {best[1]:6.1f} ({median[1]:6.1f}), {ratio[1]:.2f} x",
            flush=True,
        )


def loading(model: QModel, place: Path) -> None:
    asked = {"everyday": OnnxOptions(), "exact": OnnxOptions("exact", activations="int16")}
    for name, options in asked.items():
        path = exporter.export(replace(model, asked=ExportOptions(onnx=options)), place / name) / "model.onnx"
        for reuse in (True, False):
            settings = ort.SessionOptions()
            settings.enable_mem_reuse, settings.log_severity_level = reuse, 3
            start = time.perf_counter()
            ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
            print(f"{name:10} enable_mem_reuse={reuse!s:5} {time.perf_counter() - start:6.2f} s", flush=True)


def floats(tensor: Tensor) -> Tensor:
    return decode(tensor) if isinstance(tensor, QTensor) else tensor


def random_model(shape: str, place: Path) -> QModel:
    """The ends in float32, as quantizing a float model leaves them."""
    config = synthetic.companions(place, shape)
    made = synthetic.Random(config, plugins.find("grids", "q4_0"))
    tensors: dict[str, Tensor] = {n: floats(made[n]) if n in (EMBEDDING, HEAD) else made[n] for n in made}
    return QModel(config, tensors, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--shape", choices=synthetic.SHAPES)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if asked.shape:
            model = random_model(asked.shape, place)
            if asked.load:
                loading(model, place)
                return
            speeds(programs(model, place, asked.threads), model.config["vocab_size"], asked.rounds)
        else:
            ids = Tokenizer(asked.base).encode(asked.text.read_text("utf-8")[:60_000], prompt=True)
            losses(programs(checkpoint.load(asked.base), place, asked.threads), np.array(ids))


if __name__ == "__main__":
    main()
