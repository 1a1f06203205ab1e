"""A model in PyTorch on some device, rebuilt from the integers of whatever artifact it is given."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from edgeqaf import evaluate, witness
from edgeqaf.digest import Floats
from edgeqaf.jsonfile import read_json
from edgeqaf.modeling import build
from edgeqaf.protocols import ALL, Artifact, Stored
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.runs import cuts
from edgeqaf.tokenizer import Tokenizer

AT_ONCE = 2**25  # weights that a product decodes at once


class TorchSession:
    """See edgeqaf.protocols.Session. device: as torch names it."""

    def __init__(self, artifact: Artifact, device: str) -> None:
        self._artifact, self._device = artifact, device
        self.tokenizer = Tokenizer(artifact.reference)
        self._last: tuple[tuple[Any, int, int], torch.Tensor] | None = None

    @cached_property
    def model(self) -> torch.nn.Module:
        """The whole model in float32, made when it is first asked for: single matrices take the memory of one."""
        tensors = {name: stored.tensor for name, stored in self._artifact.tensors.items()}
        return build(read_json(self._artifact.reference / "config.json"), tensors).to(self._device)

    def weights(self, stored: Stored, rows: slice = ALL) -> Floats:
        """`decode` on torch tensors: held against `decode` on numpy arrays."""
        weights: Floats = decode(self._there(stored, rows)).cpu().numpy()
        return weights

    def linear(self, stored: Stored, x: Floats) -> Floats:
        assert isinstance(stored.tensor, QTensor)
        there = torch.from_numpy(x).to(self._device)
        with torch.no_grad():
            parts = [
                torch.nn.functional.linear(there, self._decoded(stored, *run)).cpu().numpy()
                for run in cuts(stored.tensor.shape, most=AT_ONCE)
            ]
        return np.concatenate(parts, axis=1)

    def logits(self, tokens: Sequence[int]) -> Floats:
        return witness.logits(self.model, list(tokens))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, prompt=True)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        return evaluate.generate(self.model, self.tokenizer, prompts, max_new_tokens)

    def _decoded(self, stored: Stored, start: int, stop: int) -> torch.Tensor:
        """Some rows decoded; the last asked for are kept, for batches of probes."""
        key = stored.tensor, start, stop
        if self._last is None or self._last[0][0] is not key[0] or self._last[0][1:] != key[1:]:
            self._last = None
            self._last = key, decode(self._there(stored, slice(start, stop)))
        return self._last[1]

    def _there(self, stored: Stored, rows: slice) -> QTensor:
        """Some rows of a tensor on the device."""
        q = stored.tensor
        assert isinstance(q, QTensor)
        q = q.rows(*rows.indices(q.shape[0])[:2])
        codes, scale = (torch.from_numpy(part).to(self._device) for part in (q.codes, q.scale))
        zero = None if q.zero is None else torch.from_numpy(q.zero).to(self._device)
        return QTensor(q.grid, codes, scale, zero)
