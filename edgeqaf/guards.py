"""A step that computes no number stops the run before it is taken, and says which rows it met."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from edgeqaf import ranks
from edgeqaf.data.examples import Example, pieces
from edgeqaf.data.rows import Row
from edgeqaf.errors import Diverged, Refused
from edgeqaf.method import trainable
from edgeqaf.sharding import is_sharded

SHOWN = 60  # characters of a row's text


def require_finite_gradients(model: nn.Module) -> None:
    """Raise Diverged, naming the parameter, before an optimizer takes a gradient that is not finite."""
    if not is_sharded(model):
        _require_finite(model)
        return
    with ranks.agreed():  # each rank has its own part of every gradient
        _require_finite(model)


def _require_finite(model: nn.Module) -> None:
    grads: list[tuple[str, Any]] = [(name, p.grad) for name, p in trainable(model).items() if p.grad is not None]
    finite = [(g.to_local() if hasattr(g, "to_local") else g).isfinite().all() for _, g in grads]
    if finite and not bool(torch.stack(finite).all()):  # one question to a GPU, not one a parameter
        name = next(name for (name, _), good in zip(grads, finite, strict=True) if not good)
        raise Diverged(f"the gradient of {name} is not finite")


def blame(examples: Sequence[Example], rows: Sequence[Row], tokenizer: Any, max_length: int) -> str:
    """Which of ``rows``, counted from 1, the ``examples`` were made of: "rows 3, 17 of the data; row 3: '...'"."""
    whole = {(tuple(e.ids), tuple(e.labels)) for e in examples}
    spelled = [_spelled(e.ids) for e in examples if e.labels == e.ids]  # plain text, which may be joined
    numbers = []
    for number, row in enumerate(rows, 1):
        made = _pieces(row, tokenizer, max_length)
        if any((tuple(p.ids), tuple(p.labels)) in whole for p in made) or any(
            p.joins and _spelled(p.ids) in text for p in made for text in spelled
        ):
            numbers.append(number)
    if not numbers:
        return "rows that are no longer in the data"
    text = " ".join(" ".join(_strings(rows[numbers[0] - 1])).split())
    shown = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return f"row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} of the data; row {numbers[0]}: {shown!r}"


def _pieces(row: Row, tokenizer: Any, max_length: int) -> list[Example]:
    try:
        return pieces([row], tokenizer, max_length).examples
    except Refused:
        return []  # too long: it was left out


def _spelled(ids: Sequence[int]) -> str:
    """Token ids so that a run of them is a part of the string."""
    return f",{','.join(map(str, ids))},"


def _strings(value: Any) -> Iterator[str]:
    """Every string in a row, in order."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _strings(item)
