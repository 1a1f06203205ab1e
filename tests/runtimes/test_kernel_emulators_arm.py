"""Kernels of ARM processors written again, against llama.cpp's arm64 builds on an emulated processor."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from test_kernel_emulators import KINDS, ROWS, TYPES, activations, matrix_of, stored

from edgeqaf.errors import RuntimeAbsent
from edgeqaf.report import compare_bits
from runtime_tests.ggml.emulate.paths import PATHS
from runtime_tests.onnx import places as elsewhere

SHAPES = ((64, 2), (72, 7))  # outputs, blocks
BLOCK = "a block at a time with FMA (ARM, repacked)"
FOUR, PAIRS = "four lanes with FMA (NEON)", "pairs of blocks in eight lanes with FMA (NEON)"
FIRST, SIX = "a super-block at a time, minima first (NEON)", "a super-block at a time with FMA (NEON)"
QUARTERS = "a quarter of a super-block at a time, minima last (ARM with dotprod, repacked)"
EIGHTHS = "a super-block at a time, minima first, left-over rows by eighths, minima last (ARM with i8mm, repacked)"
REPACKED_SIX = "a super-block at a time with FMA, left-over rows without (ARM, repacked)"
OLD = "pairs of blocks in eight lanes with FMA, two inputs together (NEON without dotprod)"
VECTOR = "pairs of blocks in eight lanes with FMA, added first (SVE of 128 bits)"
TWOS = VECTOR.replace(" (", ", twos a block at a time (").replace("bits)", "bits with i8mm)")
WIDE = "pairs of blocks in sixteen lanes with FMA, added first, twos a block at a time (SVE with i8mm)"
OFFSETS = "pairs of blocks in eight lanes with FMA, twos a block at a time (NEON with i8mm)"
LAST = "a super-block at a time, minima first, of twos last (NEON with i8mm)"
# Variant -> (processor, path of each type and place).
NEON = {
    ("q4_0", "plain"): OLD, ("q8_0", "plain"): OLD, ("q4_1", "plain"): OLD,
    ("q4_K", "plain"): FIRST, ("q6_K", "plain"): SIX,
}  # fmt: skip
DOTPROD = {
    ("q4_0", "repack"): BLOCK, ("q8_0", "repack"): BLOCK,
    ("q4_K", "repack"): QUARTERS, ("q6_K", "repack"): REPACKED_SIX,
    ("q4_0", "plain"): FOUR, ("q8_0", "plain"): FOUR, ("q4_1", "plain"): PAIRS,
    ("q4_K", "plain"): FIRST, ("q6_K", "plain"): SIX,
}  # fmt: skip
SVE = {**DOTPROD, ("q4_0", "plain"): VECTOR, ("q8_0", "plain"): VECTOR}
I8MM = {
    **SVE, ("q4_K", "repack"): EIGHTHS, ("q4_0", "plain"): TWOS, ("q8_0", "plain"): TWOS, ("q4_1", "plain"): OFFSETS,
    ("q4_K", "plain"): LAST,
}  # fmt: skip
VARIANTS = {
    "armv8.0_1": ("cortex-a72", NEON),
    **dict.fromkeys(("armv8.2_1", "armv8.2_2"), ("cortex-a76", DOTPROD)),
    "armv8.2_3": ("armv9", SVE),
    **dict.fromkeys(("armv8.6_1", "armv8.6_2", "armv9.2_1", "armv9.2_2"), ("armv9", I8MM)),
}
BITS = 128  # of SVE registers, unless a variant says so
WIDER = {"armv8.6_1 256 bits": ("armv9", {**I8MM, ("q4_0", "plain"): WIDE, ("q8_0", "plain"): WIDE})}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    """What `products` reads."""
    found = {}
    for name, grid in TYPES.items():
        for out, blocks in SHAPES:
            q = matrix_of(grid, out, blocks)
            tensor, key = stored(q), f"{name}/{out}/{blocks}"
            found |= {f"{key}/matrix": tensor.data, f"{key}/about": np.array([tensor.type, *q.shape])}
            every = [x for rows in ROWS for x in activations(rows, q.shape[1])]
            found |= {f"{key}/{i}": x for i, x in enumerate(every)}
    return found


@pytest.fixture(params=[*VARIANTS, *WIDER])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def products(
    variant: str, given: dict[str, np.ndarray], libllama: Path, places: Path, tmp_path: Path
) -> dict[str, np.ndarray]:
    """The library's."""
    return multiplied(variant, given, libllama, places, tmp_path)


def multiplied(
    variant: str, given: dict[str, np.ndarray], libllama: Path, places: Path, tmp_path: Path
) -> dict[str, np.ndarray]:
    kit = libllama.parent / "linux-arm64"
    if not kit.is_dir():
        pytest.skip(f"no llama.cpp at {kit}: make kits")
    name, bits = variant.split()[0], int(variant.split()[1]) if " " in variant else BITS
    try:
        place = elsewhere.find(VARIANTS[name][0], places)
    except RuntimeAbsent as absent:
        pytest.skip(absent.cause)
    np.savez(tmp_path / "in.npz", **given)
    here = Path(__file__)
    files = tmp_path / "in.npz", tmp_path / "out.npz"
    command = [*place.command[:-1], here.with_name("products.py"), kit, name, *files]
    command = [str(word).replace("vector-length=16", f"vector-length={bits // 8}") for word in command]
    path = f"{here.parents[2]}:{place.environment['PYTHONPATH']}"
    subprocess.run(command, check=True, env={"PYTHONPATH": path}, stdout=sys.stderr)
    return dict(np.load(tmp_path / "out.npz"))


def test_known_paths_have_every_bit(
    variant: str, given: dict[str, np.ndarray], products: dict[str, np.ndarray]
) -> None:
    known, outputs = (VARIANTS | WIDER)[variant][1], defaultdict[tuple[str, str], int](int)
    for name, y in products.items():
        kind, out, blocks, _, place = name.split("/")
        asked = known.get((kind, place))
        if asked == FOUR and len(y) == 1:
            asked = PAIRS
        if asked is not None:
            path = next(path for path in PATHS[kind] if path.name == asked)
            found = path.product(matrix_of(TYPES[kind], int(out), int(blocks)), given[name.rsplit("/", 1)[0]])
            assert not compare_bits(found, y).any(), (name, asked)
            outputs[kind, place] += y.size
    assert dict(outputs) == dict.fromkeys(known, KINDS * sum(ROWS) * sum(out for out, _ in SHAPES))


def test_registers_of_512_bits_and_int8_matrix_products_break_two_levels(
    given: dict[str, np.ndarray], libllama: Path, places: Path, tmp_path: Path
) -> None:
    """What `runtime_tests.place.OPTIONS` says of them: products of even rows are wrong by more than their size."""
    products = multiplied("armv8.6_1 512 bits", given, libllama, places, tmp_path)
    for name, y in products.items():
        kind, out, blocks, _, place = name.split("/")
        if kind in ("q4_K", "q6_K") and place == "plain" and out == "64" and len(y) > 1:
            path = next(path for path in PATHS[kind] if path.name == {"q4_K": FIRST, "q6_K": SIX}[kind])
            right = path.product(matrix_of(TYPES[kind], int(out), int(blocks)), given[name.rsplit("/", 1)[0]])
            assert (np.abs(right - y).max() > 0.5 * np.abs(right).max()) == (len(y) % 2 == 0), name
