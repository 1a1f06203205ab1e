"""Exact match: generate greedily from each prompt, and compare the text with the answer expected."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgeqaf.console import Advance
from edgeqaf.data import Task
from edgeqaf.tokenizer import Tokenizer

BATCH = 32


@dataclass(frozen=True)
class Score:
    """matched of rows; answers: what was generated, row by row."""

    rows: int
    matched: int
    answers: list[str]

    @property
    def exact_match(self) -> float:
        """Share of rows answered exactly."""
        return self.matched / self.rows


def exact_match(tasks: Sequence[Task], answers: Iterator[str], advance: Advance) -> Score:
    """Compare generated answers with the expected ones, white space at the ends left out."""
    found: list[str] = []
    matched = 0
    for task, answer in zip(tasks, answers, strict=True):
        found.append(answer.strip())
        matched += found[-1] == task.answer.strip()
        advance(len(found), f"{matched} exact")
    return Score(len(tasks), matched, found)


def answer_limit(tasks: Sequence[Task], encode: Callable[[str], list[int]]) -> int:
    """Tokens to generate at most: the longest expected answer and a little more."""
    return max(len(encode(task.answer)) for task in tasks) + 8


@torch.no_grad()
def generate(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], limit: int
) -> Iterator[list[int]]:
    """Greedy continuations in order, up to and without the end token; batches padded on the left.

    model: a transformers causal language model in eval mode.
    """
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad] * (longest - len(p)) + list(p) for p in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        out = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False,
            eos_token_id=list(tokenizer.eos), pad_token_id=tokenizer.pad,
        )  # fmt: skip
        for row in out[:, longest:].tolist():
            end = next((i for i, token in enumerate(row) if token in tokenizer.eos), len(row))
            yield row[:end]
