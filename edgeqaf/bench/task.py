"""A task of the bench: rows to train on, rows held out, and how its answers are compared."""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqaf import data
from edgeqaf.data import Example, Row, Task
from edgeqaf.errors import Refused
from edgeqaf.tokenizer import Tokenizer

WINDOW, LONGEST = 128, 256  # tokens of a window of text; tokens that a row may have, longer ones are left out
HELD_OUT = {"text": 128, "rows": 256}  # windows or rows that the figures are taken from
ROWS = {"text": 5, "rows": 6}  # a step
QUESTIONS = 64  # of the held-out rows, answered greedily
SIGNS = str.maketrans(
    {"[": ": ", "]": ";", "(": ", ", ")": "", "=": " is ", "+": " plus ", "*": " times ", "%": " percent", "&": " and ",
     "#": " number ", "@": " at "}
)  # fmt: skip


@dataclass(frozen=True)
class BenchTask:
    """One task; a file of ``edgeqaf/bench/tasks`` exposes it as ``task``.

    kind:    whose learning rates it takes: task, recovery or style.
    needs:   files under the data folder, or of a checkout; source: where they are from.
    read:    data folder -> (rows to train on, rows held out).
    metric:  "exact-match" or "rouge" for rows with answers, None for text.
    extract: the part of an answer that is compared.
    """

    title: str
    kind: str
    needs: tuple[str, ...]
    source: str
    read: Callable[[Path], tuple[list[Row], list[Row]]]
    metric: str | None = None
    extract: Callable[[str], str] = str.strip


@dataclass(frozen=True)
class Material:
    """train, held_out: token sequences. questions: of the first held-out rows. size: rows of a step."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    questions: Sequence[Task]
    size: int


def plain(text: str, slash: str = " over ") -> str:
    """``text`` in the characters that models of stories know: signs as words, brackets as stops."""
    said = text.translate(SIGNS).replace("/", slash).encode("ascii", "ignore").decode()
    return re.sub(" {2,}", " ", said)


def material(task: BenchTask, folder: Path, tokenizer: Tokenizer, *, choosing: bool = False) -> Material:
    """The rows of ``task`` as token sequences; no held-out window, and no prompt of a held-out row, is trained on.

    choosing: other held-out rows, for choosing learning rates.
    """
    train, held_out = task.read(folder)
    if task.metric is None:
        windows = _windows(train, tokenizer)
        seen = {tuple(e.ids) for e in windows}
        found = [e for e in _windows(held_out, tokenizer) if tuple(e.ids) not in seen]
        count = HELD_OUT["text"]
        kept = found[count : 2 * count] if choosing else found[:count]
        return _checked(task, Material(windows, kept, (), ROWS["text"]))
    trained_on = {row["prompt"] for row in train}
    fresh = [row for row in held_out if row["prompt"] not in trained_on]
    random.Random(0).shuffle(fresh)
    pairs = list(_rows(fresh, tokenizer))
    count = HELD_OUT["rows"]
    pairs = pairs[count : 2 * count] if choosing else pairs[:count]
    questions = data.tasks([row for row, _ in pairs[:QUESTIONS]], tokenizer) if pairs else []
    examples = [example for _, example in _rows(train, tokenizer)]
    return _checked(task, Material(examples, [e for _, e in pairs], questions, ROWS["rows"]))


def batches(found: Material, seed: int, steps: int) -> list[list[Example]]:
    """What each step trains on: every row once, in an order of the seed, before any comes again."""
    shuffled = _orders(len(found.train), seed)
    return [[found.train[next(shuffled)] for _ in range(found.size)] for _ in range(steps)]


def digest(stream: Sequence[Sequence[Example]]) -> str:
    """SHA-256 of the batches, in order: equal for runs that saw the same tokens."""
    sha = hashlib.sha256()
    for batch in stream:
        sha.update(repr([(e.ids, e.labels) for e in batch]).encode())
    return sha.hexdigest()


def _orders(count: int, seed: int) -> Iterator[int]:
    shuffler = random.Random(seed)
    while True:
        yield from shuffler.sample(range(count), count)


def _windows(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Example]:
    """Whole windows of the text."""
    return [e for e in data.tokenize(rows, tokenizer, WINDOW)[0] if len(e.ids) == WINDOW]


def _rows(rows: Sequence[Row], tokenizer: Tokenizer) -> Iterator[tuple[Row, Example]]:
    for row in rows:
        (example,), _ = data.tokenize([row], tokenizer, 2**31)
        if len(example.ids) <= LONGEST:
            yield row, example


def _checked(task: BenchTask, found: Material) -> Material:
    if len(found.train) < found.size or not found.held_out:
        raise Refused(
            f"{task.title}: {len(found.train)} examples to train on, {len(found.held_out)} held out",
            f"its files are not what they should be; fetch them again: {task.source}",
        )
    return found
