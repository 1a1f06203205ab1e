"""A PyTorch model, asked: greedy continuations, and the losses of given tokens; both in padded batches."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from edgeqaf.data import Example
from edgeqaf.metrics import Losses, forwards
from edgeqaf.metrics import losses as losses_of
from edgeqaf.tokenizer import Tokenizer

BATCH = 32
LOGIT_BYTES = 2**27  # of one batch, at most; a single sequence may take more


@torch.no_grad()
def generate(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], limit: int
) -> Iterator[list[int]]:
    """Greedy continuations in order, up to and without the end token; batches padded on the left.

    model: a transformers causal language model in eval mode.
    """
    place = next(model.parameters()).device
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad] * (longest - len(p)) + list(p) for p in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(place), attention_mask=mask.to(place), max_new_tokens=limit, do_sample=False,
            eos_token_id=list(tokenizer.eos), pad_token_id=tokenizer.pad,
        )  # fmt: skip
        for row in out[:, longest:].tolist():
            end = next((i for i, token in enumerate(row) if token in tokenizer.eos), len(row))
            yield row[:end]


@torch.no_grad()
def losses(model: nn.Module, pad: int, examples: Iterable[Example]) -> Iterator[Losses]:
    """The losses of each example, in order; batches padded on the right, where a causal model does not look.

    model: a transformers causal language model in eval mode.
    """
    place = next(model.parameters()).device
    for batch in _batches(forwards(examples), int(model.config.vocab_size)):  # type: ignore[union-attr,arg-type]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch])
        out = model(input_ids=ids.to(place), attention_mask=mask.to(place), use_cache=False)
        logits = out.logits.float().cpu().numpy()
        for rows, (one, targets) in zip(logits, batch, strict=True):
            yield from (losses_of(rows[: len(one)], t) for t in targets)


Forward = tuple[list[int], list[list[int]]]


def _batches(wanted: Iterable[Forward], vocabulary: int) -> Iterator[list[Forward]]:
    """Neighbours together, as many as `BATCH` and `LOGIT_BYTES` allow."""
    batch: list[Forward] = []
    for one in wanted:
        longest = max(len(ids) for ids, _ in [*batch, one])
        if batch and (len(batch) == BATCH or (len(batch) + 1) * longest * vocabulary * 4 > LOGIT_BYTES):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch
