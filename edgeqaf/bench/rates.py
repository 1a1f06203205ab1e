"""Learning rates of the bench: one table, and the values that were tried.

A rate goes by the kind of task: ``task`` (a new format of answers), ``recovery`` (the text the model was
trained on), ``style`` (text of another kind). `tried` is what `edgeqaf bench methods --plan rates` runs: at
4 bits (at fewer where another rate is taken there), seed 0, on held-out rows that no table shows. LoTA has
no rate: its threshold is a schedule.
"""

from dataclasses import dataclass, field

KINDS = ("task", "recovery", "style")


@dataclass(frozen=True)
class Rates:
    """``lr`` by kind of task, in the unit of the method; tried: the values compared.

    tried_for: the one kind of task that they were compared on, where it is one; the others' rates are another model's.
    others: further options that go with it, by kind (the second part of a combination).
    narrow: ``lr`` by (kind, bits) where fewer bits want another.
    """

    task: float
    recovery: float
    style: float
    tried: tuple[float, ...]
    tried_for: str = ""
    others: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    narrow: dict[tuple[str, int], float] = field(default_factory=dict)

    def of(self, kind: str, bits: int | None = 4) -> tuple[tuple[str, float], ...]:
        """(option, rate) pairs for a kind of task on a grid of so many bits (None: floats)."""
        more = tuple((option, by_kind[KINDS.index(kind)]) for option, by_kind in self.others.items())
        return (("lr", self.narrow.get((kind, bits or 4), getattr(self, kind))), *more)


# A step of 3 or 2 bits is two or four times as wide: low rank wants fewer of them there.
COARSE = {("recovery", 3): 0.015, ("recovery", 2): 0.015, ("task", 2): 0.05, ("style", 2): 0.05}
RATES = {
    "full": Rates(0.01, 0.001, 0.01, tried=(0.001, 0.003, 0.01, 0.02)),
    "full-linears": Rates(0.01, 0.003, 0.01, tried=(0.001, 0.003, 0.01)),
    "lora": Rates(0.02, 0.005, 0.02, tried=(0.002, 0.005, 0.01, 0.02, 0.03, 0.05)),
    "q_bara": Rates(0.02, 0.005, 0.02, tried=(0.002, 0.005, 0.01, 0.02)),
    "codes": Rates(0.1, 0.02, 0.1, tried=(0.01, 0.02, 0.03, 0.05, 0.1, 0.2)),
    "codes-residual": Rates(0.1, 0.02, 0.1, tried=(0.02, 0.1)),
    "lowrank": Rates(
        0.1, 0.03, 0.1, tried=(0.015, 0.03, 0.05, 0.1, 0.2), narrow=COARSE | {("task", 3): 0.05, ("style", 3): 0.05}
    ),
    "lowrank-residual": Rates(0.1, 0.05, 0.1, tried=(0.015, 0.03, 0.05, 0.1), narrow=COARSE),
    "lowrank+scale": Rates(
        0.1, 0.03, 0.1, tried=(0.015, 0.03, 0.06, 0.1), others={"scale.lr": (0.02, 0.002, 0.02)},
        narrow=COARSE | {(kind, bits): 0.06 for kind in ("task", "style") for bits in (3, 2)},
    ),
    "scale": Rates(0.1, 0.01, 0.03, tried=(0.003, 0.01, 0.03, 0.1)),
    "qa_hira": Rates(0.3, 0.03, 0.3, tried=(0.03, 0.1, 0.3)),
    "qa_lora": Rates(0.1, 0.03, 0.1, tried=(0.01, 0.03, 0.1, 0.3)),
}  # fmt: skip
# model -> contender -> its rates, where they differ from the table's
OF_MODEL: dict[str, dict[str, Rates]] = {
    "storyteller-6m": {
        "lora": Rates(0.005, 0.0005, 0.005, tried=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)),
        "q_bara": Rates(0.005, 0.0005, 0.005, tried=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)),
        "codes": Rates(0.1, 0.01, 0.1, tried=(0.005, 0.01, 0.02), tried_for="recovery"),
        "codes-residual": Rates(0.1, 0.005, 0.1, tried=(0.005, 0.01, 0.02), tried_for="recovery"),
        "lowrank": Rates(0.05, 0.015, 0.05, tried=(0.015, 0.03, 0.05, 0.1)),
        "lowrank-residual": Rates(0.05, 0.015, 0.05, tried=(0.015, 0.03, 0.05, 0.1)),
        "lowrank+scale": Rates(
            0.05, 0.015, 0.05, tried=(0.015, 0.03, 0.05, 0.1), others={"scale.lr": (0.01, 0.002, 0.01)}
        ),
        "full": Rates(0.0005, 0.0005, 0.0005, tried=(0.0002, 0.0005, 0.001)),
        "full-linears": Rates(0.001, 0.0005, 0.001, tried=(0.0002, 0.0005, 0.001, 0.002)),
    }
}


def rates_of(model: str, contender: str) -> Rates | None:
    """The rates of a contender on a model; None for one without."""
    return OF_MODEL.get(model, {}).get(contender) or RATES.get(contender)
