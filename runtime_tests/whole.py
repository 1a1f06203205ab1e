"""R4, where a session can compute its whole model again: every logit from token ids, in the build's own arithmetic.

The operations before the logits are compared too. A difference in a last bit mostly vanishes where activations are
rounded to 8 bits, so logits alone would not show every wrong number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Session
from edgeqaf.replay import Reproduces, Reproduction
from edgeqaf.report import Check, Difference, Verdict, compare_bits, first_difference
from runtime_tests.job import Job, subject
from runtime_tests.layers import MORE

BUDGET = 50e9  # products in all: about a minute


@dataclass
class _Sum:
    """Of one setting, over prompts."""

    arithmetic: str
    prompts: int = 0
    positions: int = 0
    logits: int = 0
    compared: int = 0
    differing: int = 0
    first: Difference | None = None

    def add(self, prompt: int, made: Reproduction) -> None:
        different = compare_bits(made.expected, made.found)
        self.prompts += 1
        self.positions += len(made.found)
        self.logits += made.expected.size
        self.compared += made.expected.size + made.compared
        self.differing += int(different.sum()) + made.differing
        first = made.first or first_difference("logits", made.expected, made.found, different)
        if first and self.first is None:
            self.first = Difference(f"prompt {prompt}, {first.tensor}", first.index, first.expected, first.found)


def check(job: Job, session: Session) -> Iterator[Check]:
    """One check a setting, if there are prompts and the session can; else nothing."""
    if not isinstance(session, Reproduces) or not job.tokens:
        return
    positions = sum(len(tokens) + MORE for tokens in job.tokens)
    weights = sum(prod(shape) for _, shape in job.artifact.outline().values())
    if positions * weights > BUDGET:
        reason = f"not computed again: {positions} positions x {weights:,} weights are more than {BUDGET:,.0f} products"
        yield Check("R4", subject(job), Verdict.ABSENT, detail=reason)
        return
    sums: dict[str, _Sum] = {}
    try:
        for prompt, tokens in enumerate(job.tokens):
            for made in session.reproduce(tokens, MORE, job.expected):
                sums.setdefault(made.setting, _Sum(made.arithmetic)).add(prompt, made)
    except RuntimeAbsent as absent:
        yield Check("R4", subject(job), Verdict.ABSENT, detail=str(absent))
        return
    for setting, found in sums.items():
        detail = (
            f"{found.logits:,} logits of the whole model at {found.positions} positions, and the operations before "
            f"them, computed again from token ids in this build's own arithmetic ({found.arithmetic})"
        )
        who = f"{job.runtime} {job.configuration.name} again, {setting}, on {job.artifact.format}"
        verdict = Verdict.DIFFERENT if found.differing else Verdict.EXACT
        yield Check("R4", who, verdict, found.prompts, found.compared, found.differing, "values", detail, found.first)
