"""What is trained on, what is held out, and what is left out and why: every row is accounted for."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeqaf.data.examples import Example, Pieces, join, pieces
from edgeqaf.data.rows import Row
from edgeqaf.errors import Refused
from edgeqaf.tokenizer import Tokenizer

MOST_HELD_OUT = 256  # examples, of a share of the training data


@dataclass(frozen=True)
class Counts:
    """What was found in the data, in rows.

    rows: of the training data. duplicates: how many of them repeat an earlier one. leaked: held-out rows that
    are also trained on, and so left out. too_long: left out, of both; longest: in tokens, the end token included,
    where rows are whole (plain text is cut into windows).
    """

    rows: int
    duplicates: int
    leaked: int
    too_long: int
    longest: int


@dataclass(frozen=True)
class Split:
    """Examples to train on, examples to take the held-out loss of, and what happened to the others."""

    train: list[Example]
    held_out: list[Example]
    counts: Counts


def split(rows: Sequence[Row], held_out: Sequence[Row] | None, tokenizer: Tokenizer, max_length: int, *,
          share: float, seed: int, drop_duplicates: bool = False) -> Split:  # fmt: skip
    """Divide ``rows``; equal rows never end up on both sides.

    held_out: rows of a file of their own, those that are also in ``rows`` left out; None to hold out
        ``share`` of the examples, chosen by ``seed``, at most `MOST_HELD_OUT`.
    Raises Refused where nothing is left to train on, or of the held-out file.
    """
    seen = dict.fromkeys(map(_key, rows))
    kept = _first_of_each(rows) if drop_duplicates else rows
    found = pieces(kept, tokenizer, max_length)
    leaked = 0
    if held_out is None:
        train, held = hold_out(found.examples, share, seed)
        other = Pieces([], 0, 0)
    else:
        fresh = [row for row in held_out if _key(row) not in seen]
        leaked = len(held_out) - len(fresh)
        if not fresh:
            raise Refused(
                f"all {leaked} held-out rows are also in the training data", "give rows that are not trained on"
            )
        other = pieces(_first_of_each(fresh) if drop_duplicates else fresh, tokenizer, max_length)
        train, held = found.examples, other.examples
    longest, too_long = max(found.longest, other.longest), found.too_long + other.too_long
    counts = Counts(len(rows), len(rows) - len(seen), leaked, too_long, longest)
    examples = join(train, max_length)
    if not examples:
        raise Refused("the text to train on is one token long", "give a text of at least two tokens")
    return Split(examples, join(held, max_length), counts)


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(rest, held out) of ``examples``, shuffled; equal ones stay together, on either side."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Example]] = {}
    for example in examples:
        groups.setdefault((tuple(example.ids), tuple(example.labels)), []).append(example)
    alike = list(groups.values())
    count = min(MOST_HELD_OUT, int(share * len(examples)))
    train: list[Example] = []
    held: list[Example] = []
    for i in torch.randperm(len(alike), generator=torch.Generator().manual_seed(seed)).tolist():
        side = held if len(held) + len(alike[i]) <= count else train
        side += alike[i]
    return train, held


def remarks(counts: Counts, max_length: int, *, dropped: bool) -> list[str]:
    """What a person should know about the data, one sentence each; nothing where all is well."""
    found = []
    if counts.duplicates:
        done = "left out" if dropped else "trained on as often as they are there; --drop-duplicates leaves them out"
        found.append(f"{counts.duplicates} of {counts.rows} rows repeat an earlier one: {done}")
    if counts.leaked:
        found.append(f"{counts.leaked} held-out rows are also in the training data: left out of the held-out loss")
    if counts.too_long:
        found.append(
            f"{counts.too_long} rows are longer than {max_length} tokens (the longest {counts.longest}): left out; "
            f"--max-length {counts.longest} would keep them"
        )
    return found


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    return list({_key(row): row for row in reversed(rows)}.values())[::-1]


def _key(row: Row) -> bytes:
    """Equal for equal rows alone, short enough to keep one of every row."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
