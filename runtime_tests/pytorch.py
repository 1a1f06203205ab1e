"""A model in PyTorch on some device, rebuilt from the integers of whatever artifact it is given."""

from collections.abc import Iterator, Sequence

import torch

from edgeqaf import evaluate, witness
from edgeqaf.digest import Floats
from edgeqaf.jsonfile import read_json
from edgeqaf.modeling import build
from edgeqaf.protocols import Artifact, Stored
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.tokenizer import Tokenizer


class TorchSession:
    """See edgeqaf.protocols.Session."""

    def __init__(self, artifact: Artifact, device: str) -> None:
        self._device = device
        self.tokenizer = Tokenizer(artifact.reference)
        tensors = {name: stored.tensor for name, stored in artifact.tensors.items()}
        self.model = build(read_json(artifact.reference / "config.json"), tensors).to(device)

    def weights(self, stored: Stored) -> Floats:
        """`decode` on torch tensors: held against `decode` on numpy arrays."""
        weights: Floats = self._decoded(stored).cpu().numpy()
        return weights

    def linear(self, stored: Stored, x: Floats) -> Floats:
        with torch.no_grad():
            y = torch.nn.functional.linear(torch.from_numpy(x).to(self._device), self._decoded(stored))
        made: Floats = y.cpu().numpy()
        return made

    def logits(self, tokens: Sequence[int]) -> Floats:
        return witness.logits(self.model, list(tokens))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, prompt=True)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        return evaluate.generate(self.model, self.tokenizer, prompts, max_new_tokens)

    def _decoded(self, stored: Stored) -> torch.Tensor:
        q = stored.tensor
        assert isinstance(q, QTensor)
        codes, scale = (torch.from_numpy(part).to(self._device) for part in (q.codes, q.scale))
        zero = None if q.zero is None else torch.from_numpy(q.zero).to(self._device)
        weights: torch.Tensor = decode(QTensor(q.grid, codes, scale, zero))
        return weights
