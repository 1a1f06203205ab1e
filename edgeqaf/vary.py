"""What a runtime's session may offer beside `edgeqaf.protocols.Session`: to run its model under other settings.

Threads, and how many tokens are computed at once, share the work out in other ways. In a runtime whose logits depend on
them, no digest means anything without them. A runtime that cannot has no ``vary``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

THREADS = (1, 2)
ROWS = (512, 64, 16)  # tokens at once, at most; a prompt of more than 64 tells all three apart


@dataclass(frozen=True)
class Varied:
    """digest: of the prompts' logits (`edgeqaf.witness.digest`); rows: None where the runtime has no such setting."""

    threads: int
    rows: int | None
    digest: str


@runtime_checkable
class Varies(Protocol):
    """A session that can."""

    def vary(self, prompts: Sequence[Sequence[int]]) -> Iterator[Varied]:
        """The logits of the prompts under every setting of `THREADS` and `ROWS`; the model is loaded once if it can."""


def told(found: Iterable[Varied]) -> str:
    """In a line: "equal with 1 and 2 threads, ubatch 512, 64, 16", or which settings differ from the first."""
    made = tuple(found)
    if len(made) < 2:
        return f"{_named(made[0])} and no other" if made else "no setting to vary"
    different = [other for other in made if other.digest != made[0].digest]
    if different:
        return f"{'; '.join(map(_named, different))} differ{'s' * (len(different) == 1)} from {_named(made[0])}"
    threads = " and ".join(dict.fromkeys(str(v.threads) for v in made))
    rows = ", ".join(dict.fromkeys(str(v.rows) for v in made if v.rows is not None))
    return f"equal with {threads} threads" + (f", ubatch {rows}" if rows else "")


def _named(varied: Varied) -> str:
    threads = f"{varied.threads} thread{'s' * (varied.threads != 1)}"
    return threads if varied.rows is None else f"{threads} ubatch {varied.rows}"
