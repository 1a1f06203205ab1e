"""Kernels written again, against the library's own: every output's bits, on random matrices.

The library is xllamacpp's, or the folder in ``EDGEQAF_LLAMA_LIB``; its other CPU variants have a process each.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from on_grid import on_grid
from test_llama_cpp import random_tensor

from edgeqaf import plugins
from edgeqaf.child import stream
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.parts import split
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import compare_bits
from exporters.gguf.blocks import CARRIERS, pack
from runtime_tests.ggml.emulate.activations import Rule, rounded
from runtime_tests.ggml.emulate.envelope import envelope
from runtime_tests.ggml.emulate.paths import PATHS
from runtime_tests.ggml.file import FileTensor
from runtime_tests.ggml.identify import identify
from runtime_tests.ggml.library import load
from runtime_tests.ggml.matmul import Cpu, Matrix
from runtime_tests.loops import TILE

LIB = Path(os.environ["EDGEQAF_LLAMA_LIB"]) if "EDGEQAF_LLAMA_LIB" in os.environ else None
TYPES = {name: next(g for g, c in CARRIERS.items() if c.layout.name.lower() == name.lower()) for name in PATHS}
ROWS = (1, 2, 4, 7, 8, 33)
BLOCKS = (1, 2, 7, 8)  # of a row; odd and even, as some kernels take them in pairs
OUT = (8, 96, TILE + 8)
KINDS = 4  # of activations
FUSED, LANES, REPACKED = "eight lanes with FMA (AVX2 and later)", "eight lanes (AVX)", "(repacked)"
C, SUPER_C = "a block at a time (plain C)", "every eighth product in a lane (plain C)"
SSE, PAIRS = "pairs of blocks in sixteen lanes (SSE)", "pairs of blocks in eight lanes"
TILED = "a super-block at a time, activations scaled last (tiled)"
# Of the CPU variants of `make kits`: the paths of Q4_0 and Q8_0 for one row and for more, of Q4_1, and of K types, none
# of them repacked. docs/design/kernel-emulators.md has the table.
OLD = {
    "x64": ((C, C), (C, C), C, SUPER_C),
    "sse42": ((SSE, SSE), (C, C), C, SUPER_C),
    "sandybridge": ((f"{PAIRS} (AVX)", LANES),) * 2 + (LANES, LANES),
    "ivybridge": ((f"{PAIRS} (AVX)", LANES),) * 2 + (LANES, LANES),
    "piledriver": ((f"{PAIRS} with FMA (AVX with FMA)", FUSED),) * 2 + (FUSED, FUSED),
}
NEW = ("haswell", "alderlake", "skylakex", "cannonlake", "cascadelake", "icelake", "cooperlake", "zen4")
VARIANTS = (*OLD, *NEW)
ALWAYS = ("x64", "sandybridge", "haswell")  # the others are slow tests


def matrix_of(grid: str, out: int, blocks: int) -> QTensor:
    """Weights whose blocks have scales of many sizes."""
    made = plugins.find("grids", grid)
    rng = np.random.default_rng([out, blocks])
    weights = rng.normal(0, 1, (out, blocks * made.unit // 32, 32)) * np.exp(rng.normal(0, 1, (out, 1, 1)))
    return on_grid((weights * np.exp(rng.normal(0, 1, (*weights.shape[:2], 1)))).reshape(out, -1).astype("f4"), made)


def stored(q: QTensor) -> FileTensor:
    layout = CARRIERS[q.grid.name].layout
    blocks = pack(q.grid, split(q))
    return FileTensor("w", layout.ggml_type, layout.name, q.shape, np.ascontiguousarray(blocks).view("u1").reshape(-1))


def activations(rows: int, inputs: int) -> Iterator[np.ndarray]:
    """`KINDS`: normal ones, with blocks of zeros; none positive; exact halves of an 8-bit step; and about halves."""
    rng = np.random.default_rng([rows, inputs])
    size = np.exp(rng.normal(0, 1, (rows, inputs // 32))).astype("f4").repeat(32, 1)
    normal = rng.normal(0, 1, (rows, inputs)).astype("f4") * size
    yield normal * (rng.integers(0, 4, (rows, inputs // 32)) > 0).astype("f4").repeat(32, 1)
    yield -np.abs(normal)
    halves = rng.integers(-126, 126, (rows, inputs)).astype("f4") + np.float32(0.5)
    halves[:, ::32] = 127 * np.exp2(rng.integers(-3, 4, (rows, 1)).astype("f4"))
    yield halves * np.exp2(rng.integers(-9, 1, (rows, inputs // 32)).astype("f4")).repeat(32, 1)
    about = (rng.integers(-126, 126, (rows, inputs)).astype("f4") + np.float32(0.5)) * (size / np.float32(127))
    about[:, ::32] = size[:, ::32]
    yield about


def battery(library: Path | None, variant: str = "") -> Iterator[tuple[str, bool, int, int, str]]:
    """(type, repacked, rows, outputs, name of the path that has every bit) for all that the library has kernels for."""
    cpu = Cpu(load(library, variant), 1)
    for name, grid in TYPES.items():
        for repack in (False, True):
            for rows in ROWS:
                left, outputs = {path.name for path in PATHS[name]}, 0
                for out in OUT:
                    for blocks in BLOCKS:
                        q = matrix_of(grid, out, blocks)
                        try:
                            matrix = Matrix(cpu, stored(q), repack)
                        except RuntimeAbsent:
                            continue
                        for x in activations(rows, q.shape[1]):
                            y = matrix.multiply(x)
                            outputs += y.size
                            equal = (p for p in PATHS[name] if p.name in left)
                            left = {p.name for p in equal if not compare_bits(p.product(q, x), y).any()}
                        matrix.close()
                if outputs:
                    yield name, repack, rows, outputs, " or ".join(sorted(left))
    cpu.close()


def documented(variant: str, name: str, repack: bool, rows: int) -> str:
    if repack:
        return next(path.name for path in PATHS[name] if path.name.endswith(REPACKED))
    if name.endswith("_K") and variant == "xllamacpp" and rows >= 8:
        return TILED
    q4_0, q8_0, q4_1, supers = OLD.get(variant, ((FUSED, FUSED), (FUSED, FUSED), FUSED, FUSED))
    return {"q4_0": q4_0[rows > 1], "q8_0": q8_0[rows > 1], "q4_1": q4_1}.get(name, supers)


def check_battery(found: list[tuple[str, bool, int, int, str]]) -> None:
    assert {(name, rows) for name, repack, rows, _, _ in found if not repack} == {(n, r) for n in TYPES for r in ROWS}
    assert [case for case in found if case[-1] not in {path.name for path in PATHS[case[0]]}] == []
    assert {outputs / rows for _, _, rows, outputs, _ in found} == {KINDS * sum(OUT) * len(BLOCKS)}


def test_one_path_has_every_bit() -> None:
    found = list(battery(LIB))
    check_battery(found)
    if LIB is None and "AVX2" in load(None).version:
        assert [path for *_, path in found] == [documented("xllamacpp", *case[:3]) for case in found]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("repack", [False, True], ids=["plain", "repack"])
def test_the_path_holds_for_any_scale(name: str, repack: bool) -> None:
    """Scales over all of float16, and activations down to nothing, where products are subnormal."""
    cpu, q = Cpu(load(LIB), 2), random_tensor(TYPES[name])
    try:
        matrix = Matrix(cpu, stored(q), repack)
    except RuntimeAbsent as absent:
        pytest.skip(absent.cause)
    for rows in (1, 7, 33):
        path = identify(matrix.multiply, name, q, rows)
        assert path is not None
        for size in (1e-30, 1e-20, 1e-8, 1, 100):
            x = next(activations(rows, q.shape[1])) * np.float32(size)
            assert not compare_bits(path.product(q, x), matrix.multiply(x)).any()
    matrix.close()
    cpu.close()


@pytest.mark.parametrize("variant", [v if v in ALWAYS else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS])
def test_one_path_has_every_bit_of_another_cpu(variant: str, libllama: Path) -> None:
    try:
        found = list(stream(f"llama.cpp, {variant}", battery, libllama, variant))
    except RuntimeAbsent as absent:
        pytest.skip(absent.cause)
    check_battery(found)
    assert {(name, repack) for name, repack, *_ in found if repack} == (
        {("q4_0", True), ("q4_K", True)} if variant in NEW else set()
    )
    for name, repack, rows, _, path in found:
        assert path == documented(variant, name, repack, rows)


@pytest.mark.parametrize("name", TYPES)
def test_paths_differ(name: str) -> None:
    """No two are one and the same, so that a name says something."""
    q = matrix_of(TYPES[name], 96, 8)
    x = np.concatenate([*activations(9, q.shape[1]), *activations(1, q.shape[1])])
    x = x[:38]  # no number of fours; in chunks of 13, 13 and 12, so that some go in twos
    made = [path.product(q, x).tobytes() for path in PATHS[name]]
    assert len(set(made)) == len(made)
    assert len({path.name for path in PATHS[name]}) == len(made)


@pytest.mark.parametrize("name", TYPES)
def test_a_kernel_is_identified_by_its_bits(name: str) -> None:
    q = matrix_of(TYPES[name], 96, 8)
    for path in PATHS[name]:
        for rows in (1, 5) if path.twos is None else (38,):  # of which some go in twos, some not
            assert identify(lambda x, path=path: path.product(q, x), name, q, rows) is path
    last = PATHS[name][-1]

    def almost(x: np.ndarray) -> np.ndarray:
        """One bit of one output in a hundred thousand."""
        y = last.product(q, x)
        y[-1, -1] = np.nextafter(y[-1, -1], np.float32(np.inf))
        return y

    assert identify(almost, name, q, 5) is None
    assert identify(lambda x: last.product(q, x), "q2_K", q, 5) is None


@pytest.mark.parametrize("name", TYPES)
def test_every_kernel_is_within_the_envelope(name: str) -> None:
    q = matrix_of(TYPES[name], 96, 8)
    for x in activations(8, q.shape[1]):
        exact, slack = envelope(q, x)
        assert not compare_bits((x.astype("f8") @ decode(q).astype("f8").T).astype("f4"), exact).any()
        for path in PATHS[name]:
            assert (np.abs(path.product(q, x) - exact) <= slack).all()
    codes = q.codes.copy()
    codes[17] = q.grid.centre
    dropped = PATHS[name][0].product(q.replace(codes=codes), x)
    assert np.unique(np.argwhere(np.abs(dropped - exact) > slack)[:, 1]).tolist() == [17]


def test_activations_are_rounded_by_rule() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, *[0] * 26]], np.float32)
    assert rounded(x, Rule.HALF_EVEN).codes[0, :6].tolist() == [127, 0, 2, 2, 0, -2]
    assert rounded(x, Rule.HALF_AWAY).codes[0, :6].tolist() == [127, 1, 2, 3, -1, -2]
    found = rounded(np.tile(x, 8), Rule.SUPER)
    assert (found.codes[0, :6].tolist(), found.scale.tolist()) == ([-127, 0, -2, -2, 0, 2], [[-1]])
    assert found.sixteens[0, 0] == -127 - 4 + 2
    nothing = rounded(np.zeros((1, 256), np.float32), Rule.SUPER)
    assert not nothing.codes.any()
    assert not nothing.scale.any()
