"""The score files that a report shows, as `edgeqaf eval -o` writes them; validated, never trusted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from edgeqaf.errors import Refused
from edgeqaf.html.inputs import Count, Digest
from edgeqaf.jsonfile import parse

Figure = Annotated[float, Field(allow_inf_nan=False)]
Figures = dict[str, dict[str, Figure | int]]


@dataclass(frozen=True)
class Score:
    """One `edgeqaf eval`: any of exact match (``matched`` of ``rows``), losses, ROUGE-L, lm-eval's tasks."""

    label: str
    runtime: str
    rows: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    matched: Count | None = None
    loss: Figure | None = None
    perplexity: Figure | None = None
    bits_per_byte: Figure | None = None
    rouge_l: Figure | None = None
    tasks: Figures = field(default_factory=dict)
    groups: Figures = field(default_factory=dict)
    method: str | None = None
    root: Digest | None = None

    def figures(self) -> Iterator[tuple[str, float]]:
        """(what, value) of all but exact match, which is drawn as a bar."""
        own = {
            "loss, nats per token": self.loss, "perplexity": self.perplexity, "bits per byte": self.bits_per_byte,
            "ROUGE-L": self.rouge_l,
        }  # fmt: skip
        yield from ((what, value) for what, value in own.items() if value is not None)
        for name, metrics in {**self.groups, **self.tasks}.items():
            yield from ((f"{name}, {metric}", value) for metric, value in metrics.items() if metric != "rows")


def read_score(path: Path) -> Score:
    """One score file; raises Refused for one without a score, or with more matches than rows."""
    score = parse(Score, path)
    if score.matched is not None and (score.rows is None or score.matched > score.rows):
        raise Refused(
            f"{path}: {score.matched} matched of {score.rows} rows", "the file is corrupt; score the model again"
        )
    if score.matched is None and not any(True for _ in score.figures()):
        raise Refused(f"{path} holds no score", "pass a file that edgeqaf eval -o has written")
    return score
