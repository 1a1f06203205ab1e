"""R3: each product with a quantized matrix in a running model, against its kernel's own arithmetic.

The activations are the runtime's own, so what one layer does is no business of the next, and a difference names the
layer that it comes from.
"""

from collections import Counter, defaultdict
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
    """R3, if there are prompts and the session can show its products; else nothing.

    The place of a difference is prompt, position in it and output.
    """
    if not isinstance(session, Replays) or not job.tokens:
        return
    watch = _Watch()
    try:
        for prompt, tokens in enumerate(job.tokens):
            watch.begin(prompt)
            tapped, free = (session.replay(tokens, MORE, job.expected, see) for see in (watch.see, None))
            changed = compare_bits(free, tapped)
            if changed.any():
                reason = f"watching changes what is computed: {changed.sum()} of {free.size} logits differ with it"
                yield Check("R3", subject(job), Verdict.ABSENT, detail=reason)
                return
    except RuntimeAbsent as absent:
        yield Check("R3", subject(job), Verdict.ABSENT, detail=str(absent))
        return
    found = watch.tally.check("R3", job, str(watch), "outputs")
    bounded = watch.unknown and found.verdict is Verdict.EXACT
    yield replace(found, verdict=Verdict.BOUNDED) if bounded else found


class _Watch:
    """Compares every product, and counts the outputs of each path."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.known: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.used: defaultdict[str, float] = defaultdict(float)  # of an envelope, the largest share

    def begin(self, prompt: int) -> None:
        self._prompt = prompt
        self._rows: Counter[str] = Counter()  # of each tensor, that were seen of the prompt

    def see(self, product: Product) -> None:
        name, expected, found = product.name, product.expected, product.found
        different = compare_bits(expected, found)
        if product.slack is not None:
            distance = np.abs(found - expected)
            different &= ~(distance <= product.slack)
            used = np.divide(distance, product.slack, out=np.zeros_like(distance), where=product.slack > 0)
            self.used[product.path] = max(self.used[product.path], float(used.max(initial=0)))
        seen = self._rows[name]
        self.tally.add(name, expected, found, different, place=lambda row, out: (self._prompt, seen + row, out))
        self._rows[name] += len(found)
        (self.known if product.slack is None else self.unknown)[product.path] += found.size

    def __str__(self) -> str:
        """The paths that were met."""
        known = [f"{path}: {count:,}" for path, count in sorted(self.known.items())]
        unknown = [
            f"{path}: unknown path, {count:,} held to an envelope only, of which {self.used[path]:.1%} is used at most"
            for path, count in sorted(self.unknown.items())
        ]
        return "; ".join([*known, *unknown])
