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
# Variant -> (processor, path of each type and place); where there is none it is not known, and R3 says so.
DOTPROD = {
    ("q4_0", "repack"): BLOCK, ("q8_0", "repack"): BLOCK,
    ("q4_K", "repack"): QUARTERS, ("q6_K", "repack"): REPACKED_SIX,
    ("q4_0", "plain"): FOUR, ("q8_0", "plain"): FOUR, ("q4_K", "plain"): FIRST, ("q6_K", "plain"): SIX,
}  # fmt: skip
I8MM = {
    ("q4_0", "repack"): BLOCK, ("q8_0", "repack"): BLOCK, ("q4_K", "repack"): EIGHTHS, ("q6_K", "repack"): REPACKED_SIX,
}  # fmt: skip
VARIANTS = {
    "armv8.0_1": ("cortex-a72", {("q4_K", "plain"): FIRST, ("q6_K", "plain"): SIX}),
    "armv8.2_1": ("cortex-a76", DOTPROD), "armv8.2_2": ("cortex-a76", DOTPROD),
    "armv8.6_1": ("armv9", I8MM), "armv8.6_2": ("armv9", I8MM),
    "armv9.2_1": ("armv9", I8MM), "armv9.2_2": ("armv9", I8MM),
}  # fmt: skip
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


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def products(
    variant: str, given: dict[str, np.ndarray], libllama: Path, places: Path, tmp_path: Path
) -> dict[str, np.ndarray]:
    """The library's."""
    kit = libllama.parent / "linux-arm64"
    if not kit.is_dir():
        pytest.skip(f"no llama.cpp at {kit}: make kits")
    try:
        place = elsewhere.find(VARIANTS[variant][0], places)
    except RuntimeAbsent as absent:
        pytest.skip(absent.cause)
    np.savez(tmp_path / "in.npz", **given)
    here = Path(__file__)
    files = tmp_path / "in.npz", tmp_path / "out.npz"
    command = [*place.command[:-1], here.with_name("products.py"), kit, variant, *files]
    path = f"{here.parents[2]}:{place.environment['PYTHONPATH']}"
    subprocess.run(list(map(str, command)), check=True, env={"PYTHONPATH": path}, stdout=sys.stderr)
    return dict(np.load(tmp_path / "out.npz"))


def test_known_paths_have_every_bit(
    variant: str, given: dict[str, np.ndarray], products: dict[str, np.ndarray]
) -> None:
    known, outputs = VARIANTS[variant][1], defaultdict[tuple[str, str], int](int)
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
