"""The GPU kernels at the shapes of an 8B model: that they are exact on this GPU, and how near they come to its memory.

    python benchmarks/kernels_gpu.py
    python benchmarks/kernels_gpu.py --grid q4_1 --rank 64

First every kernel runs beside its reference on the CPU, and every integer and weight must be equal bit for bit; the
exit code is 1 if one is not. Then each is timed: the median over the rounds, with the GPU's cache emptied before
each. GB/s counts every byte once that must be read or written; the share is of what this GPU reaches when it copies
1 GiB, measured in the same run. The last column times the reference on the same GPU, operation by operation.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeqaf import kernels, plugins
from edgeqaf.adapters.codes import CLIP, PARTS, Codes, move, squares
from edgeqaf.adapters.lowrank import fold_product
from edgeqaf.grid import Grid, Zero
from edgeqaf.packed import Packed, lanes, weights

SHAPES = (4096, 4096), (14336, 4096), (4096, 14336)
SMALL = 519, 4096  # whose reference is quick on a CPU: two bands of the noise and a part of a third
LR = 0.03
Cases = dict[str, tuple[Any, tuple[Any, ...], int]]


def matrix(grid: Grid, out: int, inputs: int) -> Packed:
    """Random codes; scales and zeros as quantized weights have them."""
    generator = torch.Generator().manual_seed(0)
    blocks = inputs // grid.block
    codes = torch.randint(0, 256, (out, inputs // lanes(grid)), generator=generator, dtype=torch.uint8)
    if grid.bits == 3:
        codes &= 0x77
    scale = (torch.randn(out, blocks, generator=generator) * 2.0**-8).half().float()
    zero = {
        Zero.NONE: None,
        Zero.CODE: torch.randint(grid.lo, grid.hi + 1, (out, blocks), generator=generator).float(),
        Zero.OFFSET: -scale * 8,
    }[grid.zero]
    return Packed(grid, codes, scale, None if zero is None else zero.half().float())


def cases(base: Packed, rank: int, dtype: torch.dtype) -> Cases:
    """By kernel: the marked function, its arguments on the CPU, and the bytes it cannot do without."""
    (out, inputs), grid = base.shape, base.grid
    generator = torch.Generator().manual_seed(1)
    factor = (base.scale.abs().mean(1, True) / base.scale).double()
    grad = torch.randn(out, inputs, generator=generator).to(dtype)
    row, column = 1 / base.scale.abs().mean(1) * LR * PARTS, torch.ones(inputs)
    b, a = torch.randn(out, rank, generator=generator) / 4, torch.randn(rank, inputs, generator=generator)
    kind = str(dtype).removeprefix("torch.")
    count, codes, scale = out * inputs, base.codes.numel(), base.scale.numel() * 4
    part, zero = Codes(base, 1, 0), 0 if grid.zero is Zero.NONE else scale
    return {
        f"weights {kind}": (weights, (base, slice(0, out), dtype), codes + scale + zero + count * dtype.itemsize),
        f"fold_product rank {rank}": (fold_product, (base, b, a, factor, None), 2 * codes + factor.numel() * 8),
        f"squares {kind}": (squares, (grad, base.scale), count * dtype.itemsize + scale),
        f"move {kind}": (
            move,
            (grad, base.scale, row, column, CLIP * LR * PARTS, part),
            count * (dtype.itemsize + 2) + 2 * codes + scale,
        ),
    }


def there(value: Any) -> Any:
    """The argument on the GPU: a copy."""
    if isinstance(value, Packed):
        zero = None if value.zero is None else value.zero.cuda()
        return replace(value, codes=value.codes.cuda(), scale=value.scale.cuda(), zero=zero)
    if isinstance(value, Codes):
        copy = Codes(Packed(value.grid, value.codes, torch.empty(len(value.v_row), len(value.v_col) // 32), None), 1, 0)
        return copy.cuda()
    return value.cuda() if isinstance(value, Tensor) else value


def differences(grid: Grid, rank: int, dtype: torch.dtype) -> dict[str, int]:
    """By kernel, how many of its bytes differ from the reference's on the CPU; `squares` is exempt: it sums."""
    found = {}
    for name, (function, arguments, _) in cases(matrix(grid, *SMALL), rank, dtype).items():
        if function is squares:
            continue
        moved = [there(argument) for argument in arguments]
        results = [function(*moved)]
        if function is move:
            function.__wrapped__(arguments[0].float(), *arguments[1:])
            pairs = [(moved[-1].codes, arguments[-1].codes), (moved[-1].remainder, arguments[-1].remainder)]
        else:
            pairs = [(results[0], function.__wrapped__(*arguments))]
        found[name] = sum(int((a.cpu().view(torch.uint8) != b.view(torch.uint8)).sum()) for a, b in pairs)
    return found


def seconds(action: Callable[[], Any], rounds: int) -> float:
    """Median time on the GPU, its cache filled with other things before each round; the first two warm up."""
    other = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(rounds + 2):
        other.fill_(1)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])


def copying(rounds: int) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2**31 / seconds(lambda: target.copy_(source), rounds)


def report(grid: Grid, rank: int, dtype: torch.dtype, rounds: int) -> None:
    roof = copying(rounds)
    print(f"copy of 1 GiB: {roof / 1e9:.0f} GB/s\n")
    print(f"{'shape':>13} {'kernel':28} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'reference ms':>13}")
    for out, inputs in SHAPES:
        for name, (function, arguments, size) in cases(matrix(grid, out, inputs), rank, dtype).items():
            moved = [there(argument) for argument in arguments]
            time = seconds(lambda f=function, m=moved: f(*m), rounds)  # type: ignore[misc]
            plain = [m.float() if isinstance(m, Tensor) and m.dtype is dtype else m for m in moved]
            slow = seconds(lambda f=function, m=plain: f.__wrapped__(*m), max(3, rounds // 5))  # type: ignore[misc]
            line = f"{out:>6}x{inputs:<6} {name:28} {time * 1e3:8.3f} {size / time / 1e9:7.0f}"
            print(f"{line} {size / time / roof:8.0%} {slow * 1e3:13.3f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="q4_0", choices=plugins.names("grids"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or kernels.family("cuda") is None:
        print("needs a CUDA GPU of compute capability 8.0 or later, and Triton", file=sys.stderr)
        return 2
    grid, dtype = plugins.find("grids", arguments.grid), getattr(torch, arguments.dtype)
    import triton

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, {grid.name}\n")
    found = differences(grid, arguments.rank, dtype)
    for name, count in found.items():
        print(f"{name:28} {'equal bit for bit' if not count else f'{count} BYTES DIFFER'}")
    print()
    report(grid, arguments.rank, dtype, arguments.rounds)
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
