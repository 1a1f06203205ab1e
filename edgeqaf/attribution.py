"""Which part of a tuned layer the result comes from: the loss with one slot at a time put back to the base's.

A method that writes codes and zeros together may owe its result to either. LoTA-QAF with its offset is
the known case: nearly everything came from the offset, while the codes hardly moved.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from edgeqaf.grid import Slot
from edgeqaf.nn import qlinears


def attribute(model: nn.Module, loss: Callable[[], float]) -> dict[str, float]:
    """``loss()`` with each written slot reverted in every layer, by slot; empty unless several slots are written."""
    written = frozenset(
        slot for layer in qlinears(model).values() if layer.adapter is not None for slot in layer.adapter.writes
    )
    if len(written) < 2:
        return {}
    found = {}
    for slot in sorted(written, key=lambda s: s.value):
        with reverted(model, slot):
            found[slot.value] = loss()
    return found


@contextmanager
def reverted(model: nn.Module, slot: Slot) -> Iterator[None]:
    """The model with one slot of every layer as it is in the base."""
    layers = list(qlinears(model).values())
    for layer in layers:
        layer.reverted = frozenset({slot})
        layer.changed()
    try:
        yield
    finally:
        for layer in layers:
            layer.reverted = frozenset()
            layer.changed()
