"""What an answer is worth: one definition of each metric, so that figures of different runtimes are comparable.

loss         mean nats per target token: -ln softmax(logits)[target], computed in float64 from the float32
             logits that a runtime gives; a token counts once, whatever the row it is in
perplexity   exp(loss)
bits per byte   loss / ln 2 * tokens / bytes of the text: comparable across tokenizers
             (Gao et al., The Pile, arXiv 2101.00027, section 3.1)
exact match  share of answers equal to the expected one, white space at the ends left out
ROUGE-L      mean F-measure of the longest common subsequence of words (the rouge-score package, no stemming)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.data import IGNORED, Example
from edgeqaf.digest import Floats
from edgeqaf.errors import Refused, RuntimeAbsent

OF_TOKENS, OF_ANSWERS = ("loss", "perplexity"), ("exact-match", "rouge")
METRICS = (*OF_TOKENS, *OF_ANSWERS)
ROWS = 64  # rows of logits widened to float64 at a time: 64 MB for a vocabulary of 128k
EXP_LIMIT = 700.0  # exp of more leaves float64


@dataclass(frozen=True)
class Losses:
    """Of one example. nats: float64 [targets], in order; greedy: whether every target was the likeliest token."""

    nats: NDArray[np.float64]
    greedy: bool


def losses(logits: Floats, targets: Sequence[int]) -> Losses:
    """The loss of each target; the one place where logits become losses.

    logits:  float32 [n, vocab], row i as it is after token i.
    targets: [n], the token that follows token i, or IGNORED where it does not count.
    Raises Refused for a target outside the vocabulary, and where the loss is not finite.
    """
    wanted = np.asarray(targets, np.int64)
    places = np.flatnonzero(wanted != IGNORED)
    wanted = wanted[places]
    foreign = wanted[(wanted < 0) | (wanted >= logits.shape[1])]
    if foreign.size:
        raise Refused(
            f"token {foreign[0]} is outside the vocabulary of {logits.shape[1]}", "the tokenizer is another model's"
        )
    nats = np.empty(len(places), np.float64)
    greedy = True
    for start in range(0, len(places), ROWS):
        rows = logits[places[start : start + ROWS]].astype(np.float64)
        tokens = wanted[start : start + ROWS]
        greedy = greedy and bool((rows.argmax(1) == tokens).all())
        rows -= rows.max(1, keepdims=True)
        nats[start : start + ROWS] = np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), tokens]
    if not np.isfinite(nats).all():
        at = int(np.flatnonzero(~np.isfinite(nats))[0])
        raise Refused(
            f"the loss of token {wanted[at]} after position {places[at]} is {nats[at]}",
            "the model gives logits that are not numbers; verify it: edgeqaf verify",
        )
    return Losses(nats, greedy)


def forwards(examples: Iterable[Example]) -> Iterator[tuple[list[int], list[list[int]]]]:
    """(ids to compute logits for, the targets of each example that needs them), in the order of ``examples``.

    An example's last token is only a target. Neighbours that differ in nothing else, such as the lettered
    choices of one question, share a forward.
    """
    for ids, group in groupby(examples, key=lambda example: example.ids[:-1]):
        yield ids, [example.labels[1:] for example in group]


def of_losses(found: Sequence[Losses], tokens_per_byte: float | None = None) -> dict[str, Any]:
    """loss, perplexity and target_tokens of all examples together; bits_per_byte where the text's density is given.

    perplexity is None where it leaves float64.
    """
    count = sum(len(one.nats) for one in found)
    loss = math.fsum(x for one in found for x in one.nats.tolist()) / count
    result = {"target_tokens": count, "loss": loss, "perplexity": math.exp(loss) if loss < EXP_LIMIT else None}
    return result if tokens_per_byte is None else result | {"bits_per_byte": loss / math.log(2) * tokens_per_byte}


def of_answers(expected: Sequence[str], found: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """matched and exact_match, rouge_l: those that ``metrics`` asks for. Raises as `rouge_l` does."""
    result: dict[str, Any] = {}
    if "exact-match" in metrics:
        matched = sum(a.strip() == b.strip() for a, b in zip(expected, found, strict=True))
        result |= {"matched": matched, "exact_match": matched / len(expected)}
    if "rouge" in metrics:
        result["rouge_l"] = rouge_l(expected, found)
    return result


def rouge_l(expected: Sequence[str], found: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure; RuntimeAbsent without rouge-score, Refused for an answer that it sees no word in."""
    scorer = rouge_scorer()
    for number, answer in enumerate(expected, 1):
        if scorer.score(answer, answer)["rougeL"].fmeasure != 1:
            raise Refused(
                f"row {number}: ROUGE-L sees no word in the expected answer {answer[:40]!r}",
                "it counts only a-z and 0-9; score such answers with --metric exact-match",
            )
    return math.fsum(scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(expected, found, strict=True)) / len(found)


def rouge_scorer() -> Any:
    """The rouge-score package's scorer of ROUGE-L; raises RuntimeAbsent where it is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise RuntimeAbsent(f"ROUGE-L needs rouge-score: {error}", "pip install 'edgeqaf[eval]'") from None
    return RougeScorer(["rougeL"], use_stemmer=False)
