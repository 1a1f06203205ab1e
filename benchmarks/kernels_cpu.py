"""The CPU kernels beside their references: nanoseconds a weight, paired, in one process.

    python benchmarks/kernels_cpu.py
    python benchmarks/kernels_cpu.py --grid q8_0 --out 8192 --inputs 2048 --threads 1

Each round runs every function both ways; the figure is the median over the rounds, the ratio that of the pairs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from edgeqaf import kernels, plugins
from edgeqaf.adapters import codes, lowrank
from edgeqaf.nn import QLinear
from edgeqaf.packed import weights
from edgeqaf.qtensor import QTensor


def pairs(arguments: argparse.Namespace) -> dict[str, Callable[[bool], Any]]:
    """By function: a call of the kernel, or of the reference, on the same layer."""
    out, inputs, grid = arguments.out, arguments.inputs, plugins.find("grids", arguments.grid)
    drawn = np.random.default_rng(0).integers(grid.lo, grid.hi + 1, (out, inputs), np.int8)
    scale = np.full((out, inputs // grid.block), 2.0**-8, np.float32)
    layer = QLinear(QTensor(grid, drawn, scale, None if grid.name.endswith("_0") else np.zeros_like(scale)))
    grad, row, column = torch.randn(out, inputs), torch.rand(out), torch.rand(inputs)
    part = codes.Codes(layer.base, 0, 0)
    low = lowrank.LowRank(layer.base, arguments.rank, False, torch.Generator().manual_seed(0))
    b, a = torch.randn(low.b.shape), low.a.detach()
    factor = low.steps_a_unit(layer.scale, slice(None))

    def of(function: Any, *given: Any) -> Callable[[bool], Any]:
        return lambda kernel: (function if kernel else function.__wrapped__)(*given)

    return {
        "weights, float32": of(weights, layer.base, slice(0, out), torch.float32),
        "weights, bfloat16": of(weights, layer.base, slice(0, out), torch.bfloat16),
        "fold_product": of(lowrank.fold_product, layer.base, b, a, factor, None),
        "squares": of(codes.squares, grad, layer.scale),
        "move": lambda kernel: of(codes.move, grad.clone(), layer.scale, row, column, 5.0, part)(kernel),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="q4_0")
    parser.add_argument("--out", type=int, default=2048)
    parser.add_argument("--inputs", type=int, default=768)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if kernels.family("cpu") is None:
        parser.error("numba is not installed")
    size = arguments.out * arguments.inputs
    print(f"{arguments.grid}, {arguments.out} x {arguments.inputs}, {arguments.threads} threads, ns a weight")
    print(f"{'function':20} {'reference':>10} {'kernel':>8} {'ratio':>7}")
    with torch.no_grad():
        for name, call in pairs(arguments).items():
            taken: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(arguments.rounds + 2):
                for kernel in (True, False):
                    taken[kernel].append(1e9 * timed(partial(call, kernel)) / size)
            ours, theirs = (taken[kernel][2:] for kernel in (True, False))  # two to compile and warm up
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            print(f"{name:20} {statistics.median(theirs):10.2f} {statistics.median(ours):8.2f} {ratio:6.1f}x")
        x, w = torch.randn(512, arguments.inputs), torch.randn(arguments.out, arguments.inputs)
        products = [timed(lambda: x @ w.T) / size for _ in range(arguments.rounds)]
        print(f"a product of 512 tokens with float32 weights: {1e9 * statistics.median(products):.2f}")


def timed(action: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
