"""Logits of the training forward, remembered by digest, so that any later form can be held against them.

Merge computes the logits of a few prompts with the adapter still attached, and stores their digest
with the exact circumstances (`key`). Whoever later rebuilds the model from a file's integers, under
the same circumstances, must get the same bits. Under other circumstances (another torch, another
CPU) float32 matmuls may round differently: then there is nothing to compare with, never a pass.
"""

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeqaf.console import Advance
from edgeqaf.digest import Floats, Tensor
from edgeqaf.tokenizer import Tokenizer

if TYPE_CHECKING:  # runtimes that need no torch use the prompts and the digest
    from torch import nn

PROMPTS = (
    "Once upon a time there was a little girl who lived near the sea.",
    "Please turn on the lamp in the kitchen at half past seven.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "Why is the sky blue? Because",
)


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of the built-in prompts."""
    return [tokenizer.encode(text, prompt=True) for text in PROMPTS]


def logits(model: "nn.Module", tokens: list[int]) -> Floats:
    """float32 [len(tokens), vocab], one sequence, no padding, one thread."""
    import torch

    place = next(model.parameters()).device
    with _one_thread(), torch.no_grad():
        out: Floats = model(torch.tensor([tokens], device=place)).logits[0].cpu().numpy()
    return out


def layerwise(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], tokens: list[list[int]],
    attach: "Callable[[nn.Module], object] | None" = None, advance: Advance = lambda done, note="": None,
) -> list[Floats]:  # fmt: skip
    """`logits` of each sequence, in the model that these tensors make; one decoder layer in memory at a time.

    attach: puts adapters on the quantized layers of the model that it is given. advance: is told of each layer.
    """
    import torch

    from edgeqaf.layerwise import Walk

    with _one_thread():
        walk = Walk(config, tensors, [torch.tensor([ids]) for ids in tokens])
    for index in range(len(walk)):
        walk.layer(index)
        if attach is not None:
            attach(walk.model)
        with _one_thread():
            walk.through(index)
        advance(index + 1)
    with _one_thread():
        return [one[0].numpy() for one in walk.logits()]


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def key() -> dict[str, str]:
    """What the bits of a float32 forward depend on, beside the model and the tokens."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu": f"{processor()}, {capability}", "threads": "1"}


def processor() -> str:
    """The processor's name: math libraries choose their kernels, and so the order of sums, by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def digest(sequences: list[Floats]) -> str:
    """SHA-256 over the logits of every prompt, as little-endian float32."""
    total = hashlib.sha256(b"edgeqaf logits 1\0")
    for sequence in sequences:
        total.update(np.ascontiguousarray(sequence, "<f4").data)
    return total.hexdigest()


def record(tokens: list[list[int]], sequences: list[Floats]) -> dict[str, Any]:
    """The witness entry of a manifest, for prompts and their logits."""
    return {"tokens": tokens, "logits": digest(sequences), "values": sum(s.size for s in sequences), "key": key()}
