"""A calibration text on its way through a model, one decoder layer's weights in memory at a time.

The activations of the whole text are kept (tokens * hidden size * 4 bytes), and beside them one decoder layer and its
Hessians (in * in * 8 bytes for each input that a linear of it has). What a layer is given comes from the layers before
it as they are by then, which is quantized.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeqaf import digest
from edgeqaf.console import say
from edgeqaf.data.examples import pieces
from edgeqaf.data.reading import read_rows
from edgeqaf.errors import Refused
from edgeqaf.layerwise import Walk
from edgeqaf.material import context_of
from edgeqaf.modeling import put
from edgeqaf.source import EMBEDDING, FloatModel
from edgeqaf.tokenizer import Tokenizer

WINDOW = 512  # tokens of a sequence, or the model's context if that is shorter


def sequences(text: Path | str, folder: Path, count: int) -> Tensor:
    """The first ``count`` tokens of a text, or of any data that training takes: int64 [sequences, tokens of each].

    Raises Refused for a text of less than one sequence, and for tokens that the model in ``folder`` has not.
    """
    source, tokenizer = FloatModel(folder), Tokenizer(folder)
    length = min(WINDOW, context_of(folder) or WINDOW)
    stream: list[int] = []
    for row in read_rows(text):
        stream += [token for example in pieces([row], tokenizer, sys.maxsize).examples for token in example.ids]
        if len(stream) >= count:
            break
    kept = min(len(stream), count) // length * length
    if not kept:
        raise Refused(
            f"calibration needs {length} tokens at least: {text} has {len(stream):,}, and {count:,} were asked for",
            "give a longer text with --calib, or a larger --calib-tokens",
        )
    foreign, known = max(stream[:kept]), source.shape(EMBEDDING)[0]
    if foreign >= known:
        raise Refused(f"token {foreign} is outside the vocabulary of {known}", "the tokenizer is another model's")
    if len(stream) < count:
        say(f"{text} has {len(stream):,} tokens, fewer than the {count:,} asked for: all are used")
    return torch.tensor(stream[:kept]).view(-1, length)


class Calibration:
    """A text before one decoder layer of a model.

    tensors: the float model's, or the embedding on a grid. ids: from `sequences`. The embedding is in memory while
    this is made; no two layers ever are.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, digest.Tensor], ids: Tensor) -> None:
        self._walk = Walk(config, tensors, [row[None] for row in ids], use_cache=False)
        self._hidden = self._walk.hidden

    def __len__(self) -> int:
        """How many layers the model has."""
        return len(self._walk)

    def hessians(self, index: int, names: Sequence[str]) -> Iterator[tuple[list[str], NDArray[np.float64]]]:
        """X^T X, float64 [in, in], over the text, of the layer's linears ``names``: once for those that share an input.

        The layer takes its weights, which are float, from the tensors.
        """
        self._walk.layer(index)
        seen = _Inputs()
        linears = {name: self._walk.model.get_submodule(name.removesuffix(".weight")) for name in names}
        hooks = [linear.register_forward_pre_hook(seen.of(name)) for name, linear in linears.items()]
        for _ in self._walk.outputs(index):
            pass
        for hook in hooks:
            hook.remove()
        yield from seen.found()

    def through(self, index: int, weights: Mapping[str, digest.Floats]) -> None:
        """Go on to the next layer, through this one with some of its ``weights`` replaced."""
        self._walk.layer(index)
        for name, values in weights.items():
            put(self._walk.model, name, values)
        self._walk.through(index)
        for i, hidden in enumerate(self._hidden):
            if not bool(hidden.isfinite().all()):
                raise Refused(
                    f"layer {index} gives numbers that are not finite for sequence {i + 1} of the text",
                    "the checkpoint is damaged, or its activations leave float32",
                )


class _Inputs:
    """Sums of X^T X of linears; those that are called one after another with the very same tensor share one."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._sharers: dict[str, list[str]] = {}
        self._last: tuple[Tensor, str] | None = None

    def of(self, name: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if self._last is not None and self._last[0] is x:
                sharers = self._sharers[self._last[1]]
                if name not in sharers:
                    sharers.append(name)
                return
            self._last = x, name
            self._sharers.setdefault(name, [name])
            flat = x.reshape(-1, x.shape[-1])
            product = (flat.T @ flat).double()  # float32 within a sequence, float64 over the text
            self._sums[name] = product if name not in self._sums else self._sums[name].add_(product)

        return note

    def found(self) -> Iterator[tuple[list[str], NDArray[np.float64]]]:
        self._last = None
        for name, sharers in self._sharers.items():
            yield sharers, self._sums.pop(name).numpy()
