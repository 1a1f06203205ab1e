"""R3: each product with a quantized matrix in a running model, against its kernel's own arithmetic.

The activations are the runtime's own, so what one layer does is no business of the next, and a difference names the
layer that it comes from.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Session
from edgeqaf.replay import Product, Replays
from edgeqaf.report import Check, Verdict, compare_bits
from runtime_tests.job import Job, subject
from runtime_tests.tally import Tally

MORE = 3  # tokens after each prompt: kernels for one row are often not those for many


def check(job: Job, session: Session) -> Iterator[Check]:
    """R3, if there are prompts and the session can show its products; else nothing."""
    if not isinstance(session, Replays) or not job.tokens:
        return
    tally, paths = Tally(), _Paths()

    def see(product: Product) -> None:
        different = compare_bits(product.expected, product.found)
        if product.slack is not None:
            different &= ~(np.abs(product.found - product.expected) <= product.slack)
        tally.add(product.name, product.expected, product.found, different)
        paths.add(product)

    try:
        for tokens in job.tokens:
            tapped, free = (session.replay(tokens, MORE, job.expected, watch) for watch in (see, None))
            changed = compare_bits(free, tapped)
            if changed.any():
                reason = f"watching changes what is computed: {changed.sum()} of {free.size} logits differ with it"
                yield Check("R3", subject(job), Verdict.ABSENT, detail=reason)
                return
    except RuntimeAbsent as absent:
        yield Check("R3", subject(job), Verdict.ABSENT, detail=str(absent))
        return
    found = tally.check("R3", job, str(paths), "outputs")
    bounded = paths.unknown and found.verdict is Verdict.EXACT
    yield replace(found, verdict=Verdict.BOUNDED) if bounded else found


class _Paths:
    """Which paths were met, with how many outputs each."""

    def __init__(self) -> None:
        self.known: defaultdict[str, int] = defaultdict(int)
        self.unknown: defaultdict[str, int] = defaultdict(int)

    def add(self, product: Product) -> None:
        outputs = self.known if product.slack is None else self.unknown
        outputs[product.path] += product.found.size

    def __str__(self) -> str:
        known = [f"{path}: {count:,}" for path, count in sorted(self.known.items())]
        unknown = [
            f"{path}: unknown path, {count:,} held to the envelope of 8-bit activations only"
            for path, count in sorted(self.unknown.items())
        ]
        return "; ".join([*known, *unknown])
