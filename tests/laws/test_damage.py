"""A damaged model folder is refused, or damaged where it means nothing; it never passes for another model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from samples import GRIDS, random_tensor

from edgeqaf.checkpoint import MANIFEST, WEIGHTS, QModel, load, save, verify
from edgeqaf.errors import Refused

FLIPS = {MANIFEST: 70, "header": 60, "data": 70}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), "utf-8")
    tensors = {f"{n}.weight": random_tensor(grid, out=2, blocks=2) for n, grid in GRIDS.items()}
    tensors["norm"] = np.linspace(0, 1, 16, dtype=np.float32)
    save(QModel({}, tensors, folder), folder / "base", kind="base", parent=None, options={"grid": "q4_0"})
    return folder / "base"


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


def outcome(folder: Path, expected: dict[str, str]) -> str:
    """ "refused" or "equal"; anything else fails."""
    try:
        found = load(folder)
        verify(found)
    except Refused:
        return "refused"
    assert found.digests() == expected
    return "equal"


def flip(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_truncated_weights_are_refused_at_every_length(base, copy):
    whole, expected = (base / WEIGHTS).read_bytes(), load(base).digests()
    lengths = {0, 1, 7, 8, 9, len(whole) - 1, *np.linspace(0, len(whole) - 1, 40).astype(int).tolist()}
    for length in sorted(lengths):
        (copy / WEIGHTS).write_bytes(whole[:length])
        assert outcome(copy, expected) == "refused", length


def test_a_truncated_manifest_is_refused_at_every_length(base, copy):
    whole, expected = (base / MANIFEST).read_bytes(), load(base).digests()
    for length in np.linspace(0, len(whole) - 2, 40).astype(int):  # the last byte is the newline after the object
        (copy / MANIFEST).write_bytes(whole[:length])
        assert outcome(copy, expected) == "refused", length


def test_trailing_bytes_are_refused(base, copy):
    (copy / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes() + b"\0")
    assert outcome(copy, {}) == "refused"


@pytest.mark.parametrize("place", FLIPS)
def test_no_flipped_bit_gives_another_model(base, copy, place):
    file = MANIFEST if place == MANIFEST else WEIGHTS
    whole, expected = (base / file).read_bytes(), load(base).digests()
    header = 8 + int.from_bytes((base / WEIGHTS).read_bytes()[:8], "little")
    first, last = {MANIFEST: (0, len(whole)), "header": (0, header), "data": (header, len(whole))}[place]
    rng = np.random.default_rng(7)
    outcomes = []
    for bit in rng.choice(np.arange(8 * first, 8 * last), FLIPS[place], replace=False).tolist():
        (copy / file).write_bytes(flip(whole, bit))
        outcomes.append(outcome(copy, expected))
    assert outcomes.count("refused") >= FLIPS[place] * (1 if place == "data" else 0.5)


def test_swapped_tensors_are_refused(base, copy):
    manifest = json.loads((base / MANIFEST).read_text("utf-8"))
    entries = manifest["tensors"]
    entries["q4_0.weight"], entries["q8_0.weight"] = entries["q8_0.weight"], entries["q4_0.weight"]
    (copy / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    assert outcome(copy, {}) == "refused"


def test_the_weights_of_another_model_are_refused(base, copy, tmp_path):
    other = QModel({}, dict(load(base).tensors) | {"norm": np.zeros(16, np.float32)}, base)
    save(other, tmp_path / "other", kind="base", parent=None, options={})
    shutil.copyfile(tmp_path / "other" / WEIGHTS, copy / WEIGHTS)
    with pytest.raises(Refused, match="norm does not match its digest"):
        verify(load(copy))
