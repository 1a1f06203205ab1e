"""ONNX Runtime's kernels written again: every output of the real ones on random matrices, to the bit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import OPTIONS, RUNTIME
from onnx_linears import Run, beside, matrix, runs, written

from edgeqaf.qtensor import QTensor
from edgeqaf.report import compare_bits
from runtime_tests.onnx import places, worker
from runtime_tests.onnx.emulate.envelope import envelope
from runtime_tests.onnx.emulate.operands import Matrix
from runtime_tests.onnx.emulate.paths import Case
from runtime_tests.onnx.identify import identify
from runtime_tests.onnx.ways import all_ways

available = RUNTIME.availability(OPTIONS)
CPUINFO = Path("/proc/cpuinfo")
AVX512 = CPUINFO.is_file() and "avx512_vnni" in CPUINFO.read_text()
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)
known_here = pytest.mark.skipif(not AVX512, reason="the kernels of this processor need not be known")

WAYS = {way.configuration.name: way for way in all_ways() if not way.configuration.program}
GRIDS = ("q4_0", "q4_1", "q8_0", "uint4", "q3_0", "q2_0", "q2_1", "uint2")
ROWS = (1, 2, 5, 33)
SHAPES = ((37, 64), (33, 288), (70, 352), (131, 1024), (144, 1056))  # [out, in]
LONG = ((48, 12288), (300, 12288))  # more blocks than a panel has inputs
BY_FOUR = ((36, 64), (72, 352), (132, 1024))  # codes of 2 bits: what the exporter does not refuse


def cases() -> Iterator[tuple[str, tuple[int, int]]]:
    for grid in GRIDS:
        for shape in SHAPES + LONG if grid == "q4_1" else BY_FOUR if "2_" in grid or grid == "uint2" else SHAPES:
            yield grid, shape


def assert_known(run: Run, q: QTensor, rows: int, threads: int = 1) -> str:
    """The kernel is identified, and has the bits of its path on all outputs of other activations; its name."""
    path = identify(run, q, rows, threads)
    assert path is not None
    x = np.random.default_rng(9).standard_normal((rows, q.shape[1])).astype(np.float32)
    assert compare_bits(path.product(Matrix(q), x, Case(rows, *q.shape, threads)), run(x)[1]).sum() == 0
    return path.name


@known_here
@pytest.mark.parametrize(("grid", "shape"), list(cases()))
@pytest.mark.parametrize("way", WAYS)
def test_every_kernel_is_known_and_exact(way: str, grid: str, shape: tuple[int, int], tmp_path: Path):
    q = matrix(grid, shape)
    model = written(q, tmp_path)
    for threads in (1, 2):
        run = runs(worker.load(str(model), {**WAYS[way].setting, **beside(model), "threads": threads}))
        for rows in ROWS:
            name = assert_known(run, q, rows, threads)
            assert ("8-bit" in name) == (way == "fused level 4")
            assert ("offsets" in name) == (q.zero is not None and grid not in ("uint4", "uint2"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "grid", "unknown"),
    [
        *(("avx2", grid, set()) for grid in ("q4_0", "q4_1", "q8_0", "uint4", "q2_0")),
        *((place, grid, set()) for place in ("avx", "sse", "web") for grid in ("q4_0", "q8_0")),
        *(
            (place, grid, set())
            for place in ("cortex-a76", "armv9")
            for grid in ("q4_0", "q4_1", "q8_0", "uint4", "q3_0")
        ),
        *((place, "q2_0", {"fused level 4"}) for place in ("cortex-a76", "armv9")),
        ("cortex-a72", "q4_0", set()),
    ],
)
def test_kernels_elsewhere(place: str, grid: str, unknown: set[str], places: Path, tmp_path: Path):
    q = matrix(grid, (36 if place == "web" or "2_" in grid else 39, 352))
    model = written(q, tmp_path)
    with find(place, places).open() as engine:
        for way in WAYS:
            run = runs(engine.load(str(model), {**WAYS[way].setting, **beside(model)}))
            for rows in (1, 5):
                if way in unknown:
                    assert identify(run, q, rows, 1) is None
                else:
                    assert_known(run, q, rows)


def find(name: str, folder: Path) -> places.Place:
    return places.find(name, folder)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("way", WAYS)
def test_the_envelope_holds_what_is_sound_and_not_a_wrong_code(way: str, grid: str, tmp_path: Path):
    """A bound: of kernels that do not round activations so narrow that a change of one code shows."""
    q = matrix(grid, (36, 352))
    model, int8 = written(q, tmp_path), way == "fused level 4"
    run = runs(worker.load(str(model), {**WAYS[way].setting, **beside(model)}))
    x = np.random.default_rng(9).standard_normal((5, 352)).astype(np.float32)
    y = run(x)[1]
    exact, slack = envelope(q, x, int8)
    assert (np.abs(y.astype(np.float64) - exact) <= slack).all()
    if not int8:
        codes = q.codes.copy()
        codes[:, 7] += np.where(codes[:, 7] < q.grid.hi, 1, -1).astype(np.int8)
        exact, slack = envelope(q.replace(codes=codes), x, int8)
        assert (np.abs(y.astype(np.float64) - exact) > slack).any()


def test_other_bits_are_an_unknown_path(tmp_path: Path):
    q = matrix("q4_0", (36, 64))
    model = written(q, tmp_path)
    run = runs(worker.load(str(model), {**WAYS["off"].setting, **beside(model)}))

    def other(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen, y = run(x)
        y[-1, -1] = np.nextafter(y[-1, -1], np.float32(np.inf))
        return seen, y

    assert identify(other, q, 5, 1) is None
