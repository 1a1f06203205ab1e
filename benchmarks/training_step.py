"""Step time and peak memory of the tuning methods, against PEFT LoRA over the same packed base, in one run.

    python benchmarks/training_step.py --shape 125m
    python benchmarks/training_step.py --shape 1b --tokens 256 --rounds 3
    python benchmarks/training_step.py --shape 8b --device cuda --precision bf16 --tokens 4096 --methods lora,codes

Every method trains the same random model on the same random tokens. Times are paired: each round takes
one step of every method in turn, in one process; the figure is the median over the rounds of a method's
step over LoRA's in that round. Memory is the peak of a process that trains this method alone: its resident size,
or on a GPU what torch holds there.

The roofline of a step is what its products with whole weight matrices would take at the rate that torch's own matrix
product reaches here, measured in the same process: forward and dL/dx of every linear layer and of the head, and dL/dW
of the linear layers where the method forms it. Attention, decoding, norms and the update are what is above it.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeqaf import plugins
from edgeqaf.gradient import multiplies_bf16
from edgeqaf.method import Course, adapter_state, method_of
from edgeqaf.modeling import build, skeleton
from edgeqaf.qtensor import QTensor
from edgeqaf.source import is_linear

SMALL = {"num_hidden_layers": 6, "num_attention_heads": 6, "vocab_size": 32000}
BASE = {"num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 32000}
LARGE = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
UNTIED = {"tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "15m": {"hidden_size": 288, "intermediate_size": 768, **SMALL},
    "125m": {"hidden_size": 768, "intermediate_size": 2048, **BASE},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, **LARGE},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, **LARGE, **UNTIED},
}  # fmt: skip
FORMS_DW = ("codes", "scale", "lota")
METHODS = ("lora", "codes", "codes:groups=2", "codes:groups=4", "lowrank", "scale", "lota")


def random_base(shape: str, grid_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Llama config of this shape, and random tensors for it: codes on the grid, float32 elsewhere."""
    config = {"model_type": "llama", "tie_word_embeddings": True, "max_position_embeddings": 4096, **SHAPES[shape]}
    grid, rng = plugins.find("grids", grid_name), np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, parameter in skeleton(config).named_parameters():
        if is_linear("llama", name):
            out, inputs = parameter.shape
            codes = rng.integers(grid.lo, grid.hi + 1, (out, inputs), np.int8)
            scale = np.full((out, inputs // grid.block), 2.0**-8, np.float32)
            tensors[name] = QTensor(grid, codes, scale, None)
        else:
            tensors[name] = (
                rng.standard_normal(tuple(parameter.shape), np.float32) * np.float32(0.02) + parameter.dim() % 2
            )
    return config, tensors


class Trainee:
    """One method on its own copy of the model."""

    def __init__(
        self, label: str, config: dict[str, Any], tensors: dict[str, Any], precision: str, device: str
    ) -> None:
        name, _, option = label.partition(":")
        method, options = method_of(name, dict([option.split("=")]) if option else {})
        self.model: nn.Module = method.attach(build(config, tensors), options, 0).train().to(device)
        self.optimizer, self.schedule = method.optimizer(self.model, options, Course(1000))
        self.bf16, self.device = precision == "bf16", device

    def step(self, ids: torch.Tensor) -> float:
        start = self.now()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return self.now() - start

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def tokens(arguments: argparse.Namespace, config: dict[str, Any]) -> torch.Tensor:
    shape = arguments.batch, arguments.tokens // arguments.batch
    found = torch.randint(0, config["vocab_size"], shape, generator=torch.Generator().manual_seed(0))
    return found.to(arguments.device)


def measure_memory(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak resident MiB of three steps of one method, and the bytes of its state; run in a process of its own."""
    config, tensors = random_base(arguments.shape, arguments.grid)
    trainee = Trainee(arguments.only, config, tensors, arguments.precision, arguments.device)
    del tensors
    gc.collect()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    for _ in range(4 if "groups" in arguments.only else 3):
        trainee.step(tokens(arguments, config))
    if arguments.device == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated()
        state = sum(t.numel() * t.element_size() for t in adapter_state(trainee.model).values())
        return {"peak_mib": peak_bytes / 2**20, "adapter_mib": state / 2**20, "built_mib": start / 1024}
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    state = sum(t.numel() * t.element_size() for t in adapter_state(trainee.model).values())
    return {"peak_mib": peak / 1024, "adapter_mib": state / 2**20, "built_mib": start / 1024}


def roofline(arguments: argparse.Namespace, config: dict[str, Any], label: str) -> float:
    """Seconds of a step's products with whole weight matrices, at torch's own rate; see above."""
    name, _, option = label.partition(":")
    groups = int(option.partition("groups=")[2] or 1)
    wide = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    narrow = torch.bfloat16 if name == "codes" and multiplies_bf16(arguments.device) else wide
    sizes = {name: parameter.numel() for name, parameter in skeleton(config).named_parameters()}
    linear = sum(size for name, size in sizes.items() if is_linear("llama", name))
    head = config["vocab_size"] * config["hidden_size"]
    back = (groups + 1) / (2 * groups)  # backward ends at the lowest layer that learns
    seconds = (linear * (1 + back) + 2 * head) / rate(wide, arguments.device)
    if name in FORMS_DW:
        seconds += linear / groups / rate(narrow, arguments.device)
    return 2 * arguments.tokens * seconds


@cache
def rate(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a large square matrix product: the best of ten."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    taken = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / min(taken)


def measure_times(arguments: argparse.Namespace, labels: list[str]) -> dict[str, list[float]]:
    config, tensors = random_base(arguments.shape, arguments.grid)
    trainees = {label: Trainee(label, config, tensors, arguments.precision, arguments.device) for label in labels}
    ids = tokens(arguments, config)
    times: dict[str, list[float]] = {label: [] for label in labels}
    for round_ in range(arguments.rounds + 1):
        for label, trainee in trainees.items():
            repeats = int(label.partition("groups=")[2] or 1)
            seconds = statistics.fmean(trainee.step(ids) for _ in range(repeats))
            if round_:  # the first warms up
                times[label].append(seconds)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--grid", default="q4_0")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        print(json.dumps(measure_memory(arguments)))
        return
    labels = arguments.methods.split(",")
    times = measure_times(arguments, labels)
    config = {"model_type": "llama", "tie_word_embeddings": True, **SHAPES[arguments.shape]}
    print(
        f"{arguments.shape}, {arguments.grid}, {arguments.tokens} tokens, {arguments.precision}, "
        + (torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} threads")
    )
    print(
        f"{'method':18} {'s/step':>8} {'x LoRA':>7} {'range':>13} {'roofline':>8} {'peak MiB':>9} {'adapter MiB':>12}"
    )
    for label in labels:
        ratios = [a / b for a, b in zip(times[label], times[labels[0]], strict=True)]
        memory = {} if arguments.no_memory else in_child(label)
        took = f"{statistics.median(times[label]):8.3f} {statistics.median(ratios):7.2f}"
        holds = f"{memory.get('peak_mib', 0):9.0f} {memory.get('adapter_mib', 0):12.1f}"
        share = roofline(arguments, config, label) / statistics.median(times[label])
        print(f"{label:18} {took} {min(ratios):6.2f}-{max(ratios):<6.2f} {share:8.0%} {holds}", flush=True)


def in_child(label: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--only", label]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


if __name__ == "__main__":
    main()
