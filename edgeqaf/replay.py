"""What a runtime's session may offer beside `edgeqaf.protocols.Session`: to show its products while a model runs.

The verification ladder asks for it at R3. A runtime that cannot simply has no ``replay``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from edgeqaf.digest import Floats
from edgeqaf.qtensor import QTensor


@dataclass(frozen=True)
class Product:
    """One product with a quantized matrix in a running model; outputs float32 [m, out], in logical order.

    name:     of the tensor.
    path:     the arithmetic of its kernel, in words.
    found:    what the runtime computed.
    expected: that arithmetic on the same activations; where it is unknown, the exact product, rounded.
    slack:    None; where it is unknown, how far from that a kernel of its kind may be, whatever order it adds in.
    """

    name: str
    path: str
    found: Floats
    expected: Floats
    slack: Floats | None = None


@runtime_checkable
class Replays(Protocol):
    """A session that can."""

    def replay(
        self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor], see: Callable[[Product], None] | None
    ) -> Floats:
        """A prompt in one piece, then ``more`` greedy tokens one by one: logits float32 [len(tokens) + more, vocab].

        see: is told of every product, beside the same from the integers of ``expected``; with None nothing is watched.
        """
