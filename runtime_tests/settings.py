"""Beside the rungs: whether a model's logits depend on how many threads compute, and how many tokens at once.

Where they do, nothing is wrong, and no digest of logits means anything without the settings it was computed with.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from edgeqaf.errors import EdgeqafError
from edgeqaf.protocols import Session
from edgeqaf.report import SETTINGS, Check, Verdict
from edgeqaf.vary import ROWS, Varies, told
from runtime_tests.job import Job, subject

# Tokens of the long prompt: one more than `ROWS` but the first, which divide one another, take at once. So each shares
# it out in another way and leaves one token by itself, which other kernels compute than several.
LONG = max(ROWS[1:]) + 1


def check(job: Job, session: Session) -> Iterator[Check]:
    """One check, if there are prompts and the session can vary two settings or more; else nothing."""
    if not isinstance(session, Varies) or not job.tokens:
        return
    prompts = [job.tokens[0], _long(job.tokens)]
    try:
        made = tuple(session.vary(prompts))
    except EdgeqafError as error:  # it computes as it is set, and other settings are its own affair
        yield Check(SETTINGS, subject(job), Verdict.ABSENT, detail=str(error))
        return
    if len(made) < 2:
        return
    _, most = Counter(varied.digest for varied in made).most_common(1)[0]
    differing = len(made) - most
    verdict = Verdict.BOUNDED if differing else Verdict.EXACT
    cause = " (sums are shared out in other ways)" if differing else ""
    yield Check(SETTINGS, subject(job), verdict, len(prompts), len(made), differing, "settings", told(made) + cause)


def _long(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The prompts one after another, and again, `LONG` tokens."""
    one = [token for tokens in prompts for token in tokens]
    return (one * (LONG // len(one) + 1))[:LONG]
