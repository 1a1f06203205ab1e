"""What quantizers leave of a model, and how long they take.

    python benchmarks/quantizers.py --data ../shared/data/tinystories_10k.txt --model examples/storyteller-6m
    python benchmarks/quantizers.py --speed --llama-lib .venv/places/llama.cpp/linux-x64

Perplexity: the text is cut in three. GPTQ reads from the beginning, and nothing of the second third is read at all; the
perplexity is of the first --tokens of the last third, in windows of 256, in PyTorch. --llama-lib adds llama.cpp's own.

Speed: nanoseconds a weight for a matrix of 4096 x 4096, each quantizer --threads threads, best of three; llama.cpp's is
a whole llama_model_quantize of an F16 file to Q4_0, reading and writing included, over the weights it quantizes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edgeqaf import evaluate, metrics, plugins, rounding
from edgeqaf.calibration import sequences
from edgeqaf.data import Example
from edgeqaf.imported import quantize_by_llama_cpp
from edgeqaf.modeling import build
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.quantize import quantize
from edgeqaf.runs import cuts
from edgeqaf.source import FloatModel

GRIDS, WINDOW = ("q4_0", "q4_1", "q3_0", "q2_0", "q2_1"), 256
LLAMA = {"q4_0": "Q4_0", "q4_1": "Q4_1"}


def perplexity(config: dict, tensors, ids: torch.Tensor) -> float:
    model = build(config, tensors)
    found = metrics.of_losses(list(evaluate.losses(model, 0, [Example(row, row) for row in ids.tolist()])))
    return float(found["perplexity"])


def table(folder: Path, data: Path, tokens: int, calib_tokens: int, lib: Path | None) -> None:
    documents = data.read_text("utf-8").split("<|endoftext|>\n")
    third = len(documents) // 3
    with tempfile.TemporaryDirectory() as place:
        calib, held_out = Path(place) / "calib.txt", Path(place) / "held_out.txt"
        calib.write_text("<|endoftext|>\n".join(documents[:third]), "utf-8")
        held_out.write_text("<|endoftext|>\n".join(documents[2 * third :]), "utf-8")
        ids = sequences(held_out, folder, tokens).view(-1, WINDOW)
        source = FloatModel(folder)
        print(f"{folder.name}: float {perplexity(source.config, dict(source), ids):.3f}, {ids.numel():,} tokens")
        print(f"| grid | absmax | rtn | gptq |{' llama.cpp |' if lib else ''} gptq, s |")
        for grid in GRIDS:
            row, seconds = [], 0.0
            for name in ("absmax", "rtn", "gptq"):
                out, begun = Path(place) / f"{grid}-{name}", time.perf_counter()
                options = {"calib": calib, "calib_tokens": calib_tokens} if name == "gptq" else {}
                base = quantize(folder, out, grid, name, **options)
                seconds = time.perf_counter() - begun
                row.append(f"{perplexity(source.config, base.tensors, ids):.3f}")
            if lib and grid in LLAMA:
                made = quantize_by_llama_cpp(folder, Path(place) / f"{grid}-llama", LLAMA[grid], RuntimeOptions(lib, 2),
                                             pure=True)  # fmt: skip
                linear = {n: made.tensors[n] if source.is_linear(n) else source[n] for n in source}
                row.append(f"{perplexity(source.config, linear, ids):.3f}")
            elif lib:
                row.append("")
            print(f"| {grid} | {' | '.join(row)} | {seconds:.0f} |", flush=True)


def speed(threads: int, lib: Path | None) -> None:
    torch.set_num_threads(threads)
    halves = (np.random.default_rng(0).standard_normal((4096, 4096), np.float32) * 0.02).astype(np.float16)
    grid = plugins.find("grids", "q4_0")
    ways: dict[str, Callable[[], object]] = {
        "absmax": lambda: by_runs(lambda run: rounding.quantize(run, grid, search=False), halves),
        "rtn": lambda: by_runs(lambda run: rounding.quantize(run, grid), halves),
        "rtn, numpy": lambda: rounding.definition(halves.astype(np.float32), grid),
    }
    ours = {name: best(way) / halves.size * 1e9 for name, way in ways.items()}
    for name, each in ours.items():
        print(f"{name:12} {each:7.2f} ns a weight")
    if lib:
        theirs = llama(halves, threads, lib) / halves.size * 1e9
        print(f"{'llama.cpp':12} {theirs:7.2f} ns a weight; absmax takes {ours['absmax'] / theirs:.2f} of it")


def by_runs(way: Callable[[np.ndarray], object], halves: np.ndarray) -> list[object]:
    """As `edgeqaf.quantizer.EachMatrix` goes over a matrix."""
    return [way(halves[start:stop].astype(np.float32)) for start, stop in cuts(halves.shape)]


def llama(weights: np.ndarray, threads: int, lib: Path) -> float:
    """Seconds of llama_model_quantize to Q4_0 for a file whose one large matrix these are."""
    import gguf

    from runtime_tests.ggml.quantize import _quantize, file_types

    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "floats.gguf", Path(place) / "q4_0.gguf"
        writer = gguf.GGUFWriter(source, "llama")
        writer.add_block_count(1)
        writer.add_context_length(512)
        writer.add_embedding_length(weights.shape[1])
        writer.add_feed_forward_length(weights.shape[0])
        writer.add_head_count(32)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(32)
        writer.add_tensor("blk.0.ffn_up.weight", weights)
        for finish in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            finish()
        writer.close()
        kind = file_types()["Q4_0"]
        return best(lambda: list(_quantize(lib, str(source), str(target), kind, threads, True, {})))


def best(way: Callable[[], object]) -> float:
    taken = []
    for _ in range(4):  # the first compiles, or warms up
        begun = time.perf_counter()
        way()
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "examples" / "storyteller-6m")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokens", type=int, default=102400)
    parser.add_argument("--calib-tokens", type=int, default=32768)
    parser.add_argument("--llama-lib", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed", action="store_true")
    asked = parser.parse_args()
    if asked.speed:
        speed(asked.threads, asked.llama_lib)
        return
    if not asked.data:
        parser.error("--data names the text")
    torch.set_num_threads(asked.threads)
    table(asked.model, asked.data, asked.tokens, asked.calib_tokens, asked.llama_lib)


if __name__ == "__main__":
    main()
