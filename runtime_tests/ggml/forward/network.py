"""The graph of a Llama: embedding, layers of attention and a gated feed-forward, norm, head.

Its nodes are named as llama.cpp names them, so that each can be held against the running graph's.
"""

from collections.abc import Callable, Sequence

import numpy as np

from edgeqaf.digest import Floats
from runtime_tests.ggml.forward.arithmetic import Arithmetic
from runtime_tests.ggml.forward.attention import Cache, attend
from runtime_tests.ggml.forward.exponential import swiglu
from runtime_tests.ggml.forward.family import Shape
from runtime_tests.ggml.forward.flash import flash
from runtime_tests.ggml.forward.norm import rms_norm
from runtime_tests.ggml.forward.weights import HEAD, Weights
from runtime_tests.ggml.model import Settings

See = Callable[[str, Floats], None]  # is told of each node's name and values, float32; not of the last, the logits
EMBEDDED, FLASH = "embd", "fattn"  # the first node; one that llama.cpp gives no name
LAYER = (
    "attn_norm", "Vcur", "Qcur", "Kcur", "kq_soft_max", "kqv", FLASH, "attn_out", "ffn_inp", "ffn_norm", "ffn_gate",
    "ffn_up", "ffn_swiglu", "ffn_out", "l_out",
)  # fmt: skip
NODES = frozenset((EMBEDDED, *LAYER, "result_norm"))


def unseen(name: str, values: Floats) -> None:
    """Nobody looks."""


class Network:
    """One sequence of at most ``capacity`` tokens, under the settings and the number of threads that llama.cpp has."""

    def __init__(
        self, shape: Shape, weights: Weights, arithmetic: Arithmetic, settings: Settings, threads: int, capacity: int
    ) -> None:
        self._shape, self._weights, self._arithmetic = shape, weights, arithmetic
        self._flash, self._threads = settings.flash, threads
        self._scale = np.float32(1) / np.sqrt(np.float32(shape.size))
        half = settings.half or settings.flash
        self._caches = [Cache(shape.kv_heads, shape.size, capacity, half) for _ in range(shape.layers)]

    def append(self, tokens: Sequence[int], see: See = unseen) -> Floats:
        """Logits after each of ``tokens``, which llama.cpp evaluates at once: float32 [len(tokens), vocab]."""
        x = self._weights.embedded(list(tokens))
        see(EMBEDDED, x)
        for i, cache in enumerate(self._caches):
            x = self._layer(i, cache, x, lambda name, values, i=i: see(f"{name}-{i}", values))  # type: ignore[misc]
        x = self._norm("output_norm", x)
        see("result_norm", x)
        return self._weights.multiply(HEAD, x)

    def _layer(self, i: int, cache: Cache, x: Floats, see: See) -> Floats:
        name = f"blk.{i}"
        h = self._norm(f"{name}.attn_norm", x)
        see("attn_norm", h)
        mixed = self._linear(f"{name}.attn_output", self._attention(name, cache, h, see))
        see("attn_out", mixed)
        x = mixed + x
        see("ffn_inp", x)
        h = self._norm(f"{name}.ffn_norm", x)
        see("ffn_norm", h)
        gate, up = self._linear(f"{name}.ffn_gate", h), self._linear(f"{name}.ffn_up", h)
        see("ffn_gate", gate)
        see("ffn_up", up)
        h = swiglu(self._arithmetic.exponential, gate, up)
        see("ffn_swiglu", h)
        down = self._linear(f"{name}.ffn_down", h)
        see("ffn_out", down)
        x = down + x
        see("l_out", x)
        return x

    def _attention(self, name: str, cache: Cache, h: Floats, see: See) -> Floats:
        shape, first = self._shape, cache.used
        v = self._linear(f"{name}.attn_v", h).reshape(len(h), -1, shape.size)
        see("Vcur", v)
        q, k = (self._heads(f"{name}.attn_{which}", h, first) for which in "qk")
        see("Qcur", q)
        see("Kcur", k)
        cache.append(k, v)
        if self._flash:
            mixed = flash(self._arithmetic, q, cache, self._scale, self._threads)
            see(FLASH, mixed)
            return mixed
        return attend(self._arithmetic, q, cache, self._scale, see)

    def _heads(self, name: str, h: Floats, first: int) -> Floats:
        x = self._linear(name, h).reshape(len(h), -1, self._shape.size)
        weight = self._weights.vector(f"{name}_norm.weight")
        if weight is not None:
            x = rms_norm(x.reshape(-1, self._shape.size), weight, self._shape.epsilon).reshape(x.shape)
        return self._shape.rope.rotate(x, first, self._arithmetic.fused)

    def _linear(self, name: str, x: Floats) -> Floats:
        y, bias = self._weights.multiply(f"{name}.weight", x), self._weights.vector(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: Floats) -> Floats:
        weight = self._weights.vector(f"{name}.weight")
        assert weight is not None
        return rms_norm(x, weight, self._shape.epsilon)
