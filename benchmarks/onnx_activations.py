"""What 8-bit activations cost: loss and greedy agreement of a model's ONNX folder, against float activations.

    python benchmarks/onnx_activations.py MODEL --text FILE

MODEL: a float model folder, quantized here to q4_0 by rtn. The text's first 20 windows of 256 tokens are scored in
ONNX Runtime, at accuracy level 1: with float activations, rounded by the graph (per tensor), and at level 4
(by ONNX Runtime, per block). One thread.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.quantize import quantize
from exporters.onnx import exporter
from runtime_tests.onnx import worker
from runtime_tests.onnx.ways import all_ways

WAYS = {way.configuration.name: way for way in all_ways()}
CASES = {
    "float": ("float", "fused level 1"),
    "int8 in the graph": ("int8", "fused level 1"),
    "float, level 4": ("float", "fused level 4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base = quantize(asked.model, Path(place) / "base", "q4_0", "rtn")
        reference: list[np.ndarray] = []
        for name, (activations, way) in CASES.items():
            options = ExportOptions(onnx=OnnxOptions(activations=activations))  # type: ignore[arg-type]
            path = exporter.export(replace(base, asked=options), Path(place) / name)
            session = WAYS[way].session(path, worker.load, 1)
            ids = session.encode(asked.text.read_text("utf-8")[:60_000])
            windows = [ids[i : i + 256] for i in range(0, len(ids) - 256, 256)][:20]
            losses, chosen = [], []
            for window in windows:
                logits = session.logits(window).astype(np.float64)
                top = logits.max(-1, keepdims=True)
                log = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
                losses.append(-log[np.arange(len(window) - 1), window[1:]].mean())
                chosen.append(logits.argmax(-1))
            reference = reference or chosen
            same = np.mean([(a == b).mean() for a, b in zip(chosen, reference, strict=True)])
            print(f"{name:18} loss {np.mean(losses):.6f}  greedy agreement {same:.2%}  ({len(windows)} windows)")


if __name__ == "__main__":
    main()
