"""What a runtime's session may offer beside `edgeqaf.protocols.Session`: its own arithmetic, done again.

Of each product while a model runs (the verification ladder asks for it at R3), and of the whole model (R4). A runtime
that cannot simply has no ``replay``, or no ``reproduce``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from edgeqaf.digest import Floats
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Difference


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


@dataclass(frozen=True)
class Reproduction:
    """Logits of a prompt and of what follows it, float32 [positions, vocab], under one of the runtime's settings.

    setting:    in words. arithmetic: that they were computed again in, in words.
    found:      what the runtime computed.
    expected:   the same from the token ids alone.
    compared, differing: numbers of values of the operations before the logits, in a run that was watched.
    first:      of these operations the first that differs.
    """

    setting: str
    arithmetic: str
    found: Floats
    expected: Floats
    compared: int = 0
    differing: int = 0
    first: Difference | None = None


@runtime_checkable
class Reproduces(Protocol):
    """A session that can compute a whole model's logits again."""

    def reproduce(self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor]) -> Iterator[Reproduction]:
        """A prompt in one piece, then ``more`` greedy tokens one by one: under each setting that it knows.

        Raises RuntimeAbsent where an operation's arithmetic is unknown.
        """
