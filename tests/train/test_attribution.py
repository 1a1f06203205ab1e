"""Reverting a slot: the loss of the model with that slot as in the base, and nothing left behind."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeqaf import plugins
from edgeqaf.attribution import attribute, reverted
from edgeqaf.grid import Slot
from edgeqaf.method import method_of
from edgeqaf.movement import Movement, early_hint, hints
from edgeqaf.nn import QLinear
from edgeqaf.qtensor import decode
from edgeqaf.quantizers.rtn import quantize


def model_with(method: str, **state: float) -> tuple[nn.ModuleDict, QLinear]:
    weights = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    layer = QLinear(quantize(weights, plugins.find("grids", "q4_1")))
    model = nn.ModuleDict({"layer": layer})
    made, options = method_of(method, {})
    made.attach(model, options, 0)
    for parameter in layer.adapter.parameters():
        parameter.data = torch.full_like(parameter, 0.5)
    return model, layer


@pytest.mark.parametrize("slot", [Slot.CODES, Slot.SCALE])
def test_reverting_puts_one_slot_back_and_then_lets_go(slot: Slot) -> None:
    model, layer = model_with("lowrank+scale")
    tuned, base = layer.folded(), layer.q
    assert not torch.equal(tuned.codes, base.codes)
    assert not torch.equal(tuned.scale, base.scale)
    with reverted(model, slot):
        seen = layer.folded()
    for each in (Slot.CODES, Slot.SCALE):
        whose = base if each is slot else tuned
        assert torch.equal(getattr(seen, each.value), getattr(whose, each.value))
    after = layer.folded()
    assert torch.equal(after.codes, tuned.codes)
    assert torch.equal(after.scale, tuned.scale)


def test_attribution_names_every_slot_and_is_silent_for_one() -> None:
    model, layer = model_with("lowrank+scale")
    losses = attribute(model, lambda: float(layer.weight.square().sum()))
    codes_back = layer.q.replace(scale=layer.folded().scale)
    scale_back = layer.folded().replace(scale=layer.q.scale)
    expected = {"codes": codes_back, "scale": scale_back}
    assert losses == {slot: float(decode(q).square().sum()) for slot, q in expected.items()}
    model, layer = model_with("scale")
    assert attribute(model, lambda: pytest.fail("asked for a loss")) == {}


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (Movement(weights=10_000, moved=4100), "41% of the codes moved, 0.0% by more than one step"),
        (Movement(weights=10_000, moved=2000, moved_far=310), "20% of the codes moved, 3.1% by more than one"),
        (Movement(weights=10_000, moved=900, saturated=1600, saturated_before=1000), "rose by 6.0% of all"),
    ],
)
def test_hints_say_what_is_odd(moved: Movement, said: str) -> None:
    (hint,) = hints(moved)
    assert said in hint


@pytest.mark.parametrize(("moved", "done"), [(40, 0.2), (40, 1.0), (50, 0.5)])
def test_early_hint_waits_for_a_quarter_of_the_steps_and_for_too_little(moved: int, done: float) -> None:
    assert early_hint(Movement(weights=10_000, moved=moved), done) is None
    said = early_hint(Movement(weights=10_000, moved=40), 0.25)
    assert said == "only 0.400% has moved after 25% of the steps: raise --lr, or stop"


def test_hints_are_silent_on_a_healthy_run() -> None:
    assert hints(Movement(weights=10_000, moved=1800, moved_far=20, saturated=900, saturated_before=1000)) == []
