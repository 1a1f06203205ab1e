"""Which arithmetic a build has between its quantized products: one entry to an instruction set.

The variants of llama.cpp's CPU backend are compiled from the same sources, and what differs is decided by the
instructions that each may use. So the entries are few, and a build has one of them in all operations.
"""

from dataclasses import dataclass, replace

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
        tile = self.tile if rows > 1 and contiguous and out % 4 == 0 else None
        return tile if tile and tile.fills(inputs) else self.dot


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


def _avx(name: str, lanes: int, exponential: Exponential, half_tiles: bool = True, masked: bool = False) -> Arithmetic:
    """AVX, AVX2 and AVX-512. half_tiles: whether float16 has tiles. masked: whether they take any number of inputs."""
    fused, neighbours = exponential.fused, lanes < 16
    dot, tile = Sum(lanes, 4, fused, neighbours), Sum(lanes, fused=fused, masked=masked)
    half = Sum(lanes, 4, fused, neighbours, wide=True)
    return Arithmetic(name, Products(dot, tile), Products(half, tile if half_tiles else None), exponential, fused)


_SSE, _SSE2 = Sum(4, 8, neighbours=True), Exponential(4, neighbours=True)
KNOWN = (
    _avx("AVX-512", 16, Exponential(16, fused=True, scaled=True)),
    _avx("AVX2 with FMA", 8, Exponential(8, fused=True)),
    _avx("AVX2 with FMA, masked", 8, Exponential(8, fused=True), masked=True),
    _avx("AVX with FMA", 8, Exponential(4, fused=True)),
    _avx("AVX with F16C", 8, Exponential(4)),
    _avx("AVX", 8, Exponential(4), half_tiles=False),
    Arithmetic("SSE", Products(_SSE), Products(replace(_SSE, wide=True)), _SSE2, fused=False),
    Arithmetic("plain C with SSE2", Products(PLAIN), Products(PLAIN), _SSE2, fused=False),
)
"""Those of recent processors first."""
