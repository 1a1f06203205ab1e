"""Which arithmetic a build has between its quantized products: one entry to an instruction set.

The variants of llama.cpp's CPU backend are compiled from the same sources, and what differs is decided by the
instructions that each may use. So the entries are few, and a build has one of them in all operations.
"""

from dataclasses import dataclass

from runtime_tests.ggml.forward.exponential import Exponential
from runtime_tests.ggml.forward.floats import PLAIN, Sum


@dataclass(frozen=True)
class Products:
    """Matrix products of one type of floats.

    dot:  of one row, and wherever tiles do not fit.
    tile: of more rows (llamafile's), if the build has it.
    """

    dot: Sum
    tile: Sum | None = None

    def order(self, rows: int, inputs: int, out: int, contiguous: bool) -> Sum:
        """For ``rows`` rows of ``inputs`` by a matrix with ``out`` outputs."""
        tile = self.tile
        fits = tile and rows > 1 and contiguous and inputs % tile.lanes == 0 and out % 4 == 0
        return tile if tile and fits else self.dot


@dataclass(frozen=True)
class Arithmetic:
    """One known arithmetic.

    name:         how reports name it.
    single, half: products of float32, and of float16, matrices.
    exponential:  of softmax and SiLU.
    fused:        whether GCC makes FMAs of products and sums.
    """

    name: str
    single: Products
    half: Products
    exponential: Exponential
    fused: bool


def _avx(lanes: int, registers: int, exponential: Exponential, fused: bool, name: str, tiles: bool = True) -> Arithmetic:
    """AVX, AVX2 and AVX-512."""
    neighbours = lanes < 16
    dot = Sum(lanes, registers, fused, neighbours)
    tile = Sum(lanes, fused=fused)
    half = Sum(lanes, registers, fused, neighbours, wide=True)
    return Arithmetic(name, Products(dot, tile), Products(half, tile if tiles else None), exponential, fused)


_SSE = Sum(4, 8, neighbours=True)
KNOWN = (
    _avx(16, 4, Exponential(16, True, scaled=True), True, "AVX-512"),
    _avx(8, 4, Exponential(8, True), True, "AVX2 with FMA"),
    _avx(8, 4, Exponential(4, True), True, "AVX with FMA"),
    _avx(8, 4, Exponential(4), False, "AVX with F16C"),
    _avx(8, 4, Exponential(4), False, "AVX", tiles=False),
    Arithmetic(
        "SSE", Products(_SSE), Products(Sum(4, 8, neighbours=True, wide=True)), Exponential(4, neighbours=True), False
    ),
    Arithmetic("plain C with SSE2", Products(PLAIN), Products(PLAIN), Exponential(4, neighbours=True), False),
)
"""Those of recent processors first."""
