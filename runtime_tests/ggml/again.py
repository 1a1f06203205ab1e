"""What llama.cpp computed, computed again: each product that a tap sees, by the arithmetic of its kernel."""

from collections.abc import Mapping

from edgeqaf.qtensor import QTensor
from edgeqaf.replay import Product
from runtime_tests.ggml.emulate.envelope import envelope
from runtime_tests.ggml.kernels import Kernels
from runtime_tests.ggml.tap import Seen


def product(kernels: Kernels, seen: Seen, expected: Mapping[str, QTensor]) -> Product:
    """``seen`` beside the same from the integers of ``expected``. Refused for a matrix the artifact lacks."""
    name, stored = kernels.stored(seen.name)
    q, rows = expected[name], len(seen.x)
    found = stored.in_logical_order(seen.y.T).T
    path, type_name = kernels.path(seen.name, seen.repacked, rows), kernels.type_name(seen.name)
    if path is None:
        place = "repacked" if seen.repacked else "plain"
        where = f"{type_name} {place}, {rows} row{'s' if rows > 1 else ''}"
        return Product(name, where, found, *envelope(q, seen.x))
    return Product(name, f"{type_name} {path.name}", found, path.product(q, seen.x))
