"""A test file made ready for its metrics: token sequences to take the loss of, questions to answer.

Rows are tokenized as in training. So is plain text without a stride: cut into windows of ``max_length``
tokens side by side, whose first token has no context and does not count. With a stride the text is
joined, each document with its end token, and a window of ``max_length`` tokens starts every ``stride``;
a token counts in the first window that holds it, and so has at least ``max_length - stride`` before it.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqaf import data
from edgeqaf.data import IGNORED, Example, Row, Task
from edgeqaf.errors import Refused, UsageError
from edgeqaf.jsonfile import read_json
from edgeqaf.metrics import METRICS, OF_ANSWERS, OF_TOKENS
from edgeqaf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Material:
    """examples: for loss and perplexity. tasks: for exact match and ROUGE-L. Each empty where not asked for.

    tokens_per_byte: of the joined text, where all rows are plain text.
    """

    examples: Sequence[Example] = ()
    tasks: Sequence[Task] = ()
    tokens_per_byte: float | None = None


def chosen(asked: str | None, rows: Sequence[Row]) -> list[str]:
    """The metrics that a comma-separated list asks for; by default exact match where every row has an answer,
    else perplexity. Raises UsageError for an unknown one."""
    if asked is None:
        return ["exact-match"] if all("text" not in row for row in rows) else ["perplexity"]
    names = [name.strip().lower().replace("_", "-") for name in asked.split(",")]
    wrong = [name for name in names if name not in METRICS]
    if wrong:
        raise UsageError(f"unknown metric {wrong[0]!r}", f"known: {', '.join(METRICS)}")
    return names


def prepare(rows: Sequence[Row], tokenizer: Tokenizer, metrics: Sequence[str], max_length: int,
            stride: int | None = None) -> Material:  # fmt: skip
    """What ``metrics`` need of ``rows``; raises Refused for the first row that cannot be scored, by its number."""
    examples: list[Example] = []
    tasks: list[Task] = []
    density = None
    if set(metrics) & set(OF_TOKENS):
        _require_window(tokenizer.folder, max_length, stride)
        texts = [row for row in rows if "text" in row]
        if stride is not None and not texts:
            raise UsageError(
                f"--stride {stride} is for plain text, and no row is", "drop it; a row is a window of its own"
            )
        examples = [one for number, row in enumerate(rows, 1) if "text" not in row
                    for one in _examples(row, number, tokenizer, max_length)]  # fmt: skip
        stream = data.tokenize(texts, tokenizer, sys.maxsize)[0][0].ids if texts else []
        if stride is not None:
            examples += windows(stream, max_length, stride)
        elif texts:
            examples += data.tokenize(texts, tokenizer, max_length)[0]
        if len(texts) == len(rows):
            density = len(stream) / sum(len(row["text"].encode()) for row in texts)
    if set(metrics) & set(OF_ANSWERS):
        tasks = data.tasks(rows, tokenizer)
        if len(tasks) < len(rows):
            number = next(i for i, row in enumerate(rows, 1) if "text" in row)
            raise Refused(
                f"row {number} is plain text, and has no answer to compare with", "score it with --metric perplexity"
            )
    return Material(examples, tasks, density)


def windows(stream: Sequence[int], max_length: int, stride: int) -> Iterator[Example]:
    """Windows [start, start + max_length) of a text's tokens; labels IGNORED for what an earlier one has counted."""
    for start in range(0, len(stream), stride):
        ids = list(stream[start : start + max_length])
        counted = max_length - stride if start else 0
        if len(ids) > max(counted, 1):
            yield Example(ids, [IGNORED] * counted + ids[counted:])


def context_of(folder: Path) -> int | None:
    """Tokens that the model in ``folder`` can attend to, by its config.json; None if that does not say."""
    found = read_json(folder / "config.json").get("max_position_embeddings")
    return found if isinstance(found, int) and found > 1 else None


def _examples(row: Row, number: int, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    """The sequence of a row; several of a conversation that the chat template rewrites as it grows."""
    try:
        examples, _ = data.tokenize([row], tokenizer, sys.maxsize)
    except Refused as refused:
        raise Refused(f"row {number}: {refused.cause}", refused.remedy) from None
    longest = max(len(example.ids) for example in examples)
    if longest > max_length:
        raise Refused(
            f"row {number} is {longest} tokens long, and a window {max_length}",
            f"pass --max-length {longest} if the model's context allows, or leave the row out",
        )
    if any(set(example.labels[1:]) <= {IGNORED} for example in examples):
        raise Refused(f"row {number} has no token to take the loss of", "its answer needs a token with one before it")
    return examples


def _require_window(folder: Path, max_length: int, stride: int | None) -> None:
    context = context_of(folder)
    if context is not None and max_length > context:
        raise UsageError(
            f"--max-length {max_length} is beyond the model's context of {context} tokens", f"at most {context}"
        )
    if stride is not None and stride > max_length:
        raise UsageError(
            f"--stride {stride} skips text between windows of {max_length} tokens", f"at most {max_length}"
        )
