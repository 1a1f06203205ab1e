"""A patch put into a GGUF file makes it the exported file of the tuned model; taken out, the file it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import GGML

from edgeqaf.checkpoint import QModel
from edgeqaf.diff import opened
from edgeqaf.errors import Refused
from edgeqaf.parts import split
from edgeqaf.patch import file, journal, making, target
from edgeqaf.patch.file import MANIFEST, Patch
from edgeqaf.patch.journal import journal_of
from edgeqaf.patch.target import Target
from edgeqaf.qtensor import QTensor
from edgeqaf.tensorfile import TensorFile, TensorWriter
from exporters.gguf.layouts import LAYOUTS


class Killed(BaseException):
    pass


def go(path: Path, patch: Patch, *, put: bool) -> str:
    """Put a patch in or take it out; what state the file was in."""
    with Target(path, patch) as opened_file:
        state = opened_file.check()
        if state.name != ("applied" if put else "not applied"):
            opened_file.move(put=put)
    return state.name


def state(path: Path, patch: Patch) -> str:
    with Target(path, patch, writable=False) as opened_file:
        return opened_file.check().name


@pytest.fixture
def small_runs(monkeypatch):
    """Runs of a few rows that cut heads in two, steps of a few runs."""
    monkeypatch.setattr(file, "RUN", 256 * 23)
    monkeypatch.setattr(target, "STEP", 2**14)


def test_put_in_and_taken_out_the_file_is_the_other_byte_for_byte(make, small_runs):
    task = make([GGML(kind) for kind in LAYOUTS])  # a file of every block type
    device = task.before.with_name("device.gguf")
    shutil.copy(task.before, device)
    patch = task.opened()
    assert state(device, patch) == "not applied"
    assert go(device, patch, put=True) == "not applied"
    assert device.read_bytes() == task.after.read_bytes() != task.before.read_bytes()
    assert state(device, patch) == go(device, patch, put=True) == "applied"
    assert go(device, patch, put=False) == "applied"
    assert device.read_bytes() == task.before.read_bytes()
    assert not journal_of(device).exists()


def cut_short(monkeypatch, write: int, work) -> bool:
    """Whether ``work`` came to its ``write``th write, half of which was made before it was killed."""
    whole, count = journal._write, iter(range(10**6))

    def cut(handle, data):
        if next(count) == write:
            whole(handle, data[: len(data) // 2])
            raise Killed
        whole(handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "_write", cut)
        try:
            work()
        except Killed:
            return True
    return False


def writes(monkeypatch, work) -> int:
    """How often ``work`` writes."""
    found, whole = [], journal._write
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_write", lambda handle, data: (found.append(1), whole(handle, data)))
        work()
    return len(found)


@pytest.mark.parametrize("put", [True, False], ids=["apply", "revert"])
def test_killed_anywhere_it_goes_on_in_either_direction(put, make, small_runs, monkeypatch):
    task = make([GGML.Q4_K, GGML.F16, GGML.Q5_0])
    patch, device = task.opened(), task.before.with_name("device.gguf")
    first, last = (task.before, task.after) if put else (task.after, task.before)
    shutil.copy(first, device)
    total = writes(monkeypatch, lambda: go(device, patch, put=put))
    for n, write in enumerate((2, 3, total // 2, total - 1)):
        shutil.copy(first, device)
        assert cut_short(monkeypatch, write, lambda: go(device, patch, put=put))
        if journal_of(device).exists() and device.read_bytes()[:4] == bytes(4):
            with pytest.raises(Refused, match="was being put in or taken out when that was cut short"):
                opened(device)
            assert state(device, patch) == "interrupted"
        there, expected = [(put, last), (not put, first)][n % 2]
        cut_short(monkeypatch, 3, lambda there=there: go(device, patch, put=there))
        go(device, patch, put=there)
        assert device.read_bytes() == expected.read_bytes()
        assert not journal_of(device).exists()
    assert total > 100


def test_other_models_are_refused_and_left_alone(make):
    task, other = make([GGML.Q4_0]), make([GGML.Q4_0], seed=5)
    bytes_before = other.after.read_bytes()
    assert state(other.after, task.opened()) == "another"
    assert other.after.read_bytes() == bytes_before
    coarse = make([GGML.Q4_1], seed=9)
    with pytest.raises(Refused, match=r"mlp.down_proj.weight is q4_1 \[256, 256\], in the patch q4_0 \[256, 256\]"):
        Target(coarse.before, task.opened())
    changed = bytearray(task.before.read_bytes())
    changed[-1] ^= 1
    task.before.write_bytes(changed)
    with Target(task.before, task.opened()) as opened_file:
        found = opened_file.check()
    assert (found.name, list(found.differing)) == ("another", ["model.layers.1.mlp.down_proj.weight"])


class Unchecked(dict):
    """Tensors by rows, which nobody checks, as whoever writes a hostile patch has them."""

    def rows(self, name):
        tensor = self[name]
        parts = split(tensor) if isinstance(tensor, QTensor) else None
        if parts is None:
            return lambda start, stop: tensor[start:stop]
        return lambda start, stop: {part: array[start:stop] for part, array in parts.items()}


def test_a_patch_that_leaves_the_grid_is_of_no_model(make, tmp_path):
    task = make([GGML.Q4_0, GGML.Q5_0])
    before, content = opened(task.before), task.before.read_bytes()
    for name, (grid, _) in before.outline().items():
        if grid == "float32":
            continue
        q = before.tensors[name]
        codes = q.codes.copy()
        codes[-1, -1] = q.grid.hi + 1  # whose digest the patch names, and which the file's blocks cannot hold
        after = QModel({}, Unchecked(dict(before.tensors) | {name: replace(q, codes=codes)}), tmp_path)
        making.make(before, after, tmp_path / name)
        with Target(task.before, Patch(tmp_path / name)) as opened_file:
            found = opened_file.check()
        assert (found.name, list(found.differing)) == ("another", [name])
    assert task.before.read_bytes() == content


def test_two_tasks_share_a_model_one_after_the_other(make, monkeypatch):
    one, two = make([GGML.Q4_0]), make([GGML.Q4_0], seed=3)
    assert one.before.read_bytes() == two.before.read_bytes()
    device = one.before
    go(device, one.opened(), put=True)
    assert state(device, two.opened()) == "another"
    go(device, one.opened(), put=False)
    assert cut_short(monkeypatch, 4, lambda: go(device, two.opened(), put=True))
    with pytest.raises(Refused, match=f"another patch \\('{two.patch.name}'\\) was being put in"):
        Target(device, one.opened())
    go(device, two.opened(), put=True)
    assert device.read_bytes() == two.after.read_bytes()


def test_no_bit_of_a_patch_can_be_wrong_unnoticed(make):
    """Damage anywhere in a patch is refused when it is opened, or when the roots are compared: before any write."""
    task = make([GGML.Q4_K])
    whole, original = task.patch.read_bytes(), task.before.read_bytes()
    rng = np.random.default_rng(0)
    places = sorted({*range(16), *rng.integers(0, len(whole), 60).tolist(), len(whole) - 1})
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        task.patch.write_bytes(damaged)
        try:
            with Target(task.before, task.opened()) as opened_file:
                name = opened_file.check().name
        except Refused:
            continue
        # What no root covers: padding, counts of codes, the tool's version, and the digests that `check` compares.
        assert name == "another" or _differences(damaged) == _differences(whole)
    assert task.before.read_bytes() == original


def _differences(patch: bytes) -> list[str]:
    """What a patch would change, as far as its container tells."""
    length = int.from_bytes(patch[:8], "little")
    header = json.loads(patch[8 : 8 + length])
    header.pop("__metadata__", None)
    manifest = header.pop(MANIFEST)["data_offsets"]
    start = 8 + length
    stated = json.loads(patch[start + manifest[0] : start + manifest[1]])
    del stated["tool"]
    for entry in stated["tensors"].values():
        del entry["moved"]
    used = {name: sum(map(sum, stated["tensors"][name]["parts"].values())) for name in header}
    return [json.dumps(stated, sort_keys=True)] + [
        patch[start + entry["data_offsets"][0] :][: used[name]].hex() for name, entry in sorted(header.items())
    ]


def test_what_is_no_patch_is_refused(tmp_path, make):
    task = make([GGML.Q4_0])
    with pytest.raises(Refused, match="its header would take"):
        Patch(task.before)
    with TensorWriter(tmp_path / "floats", {"x": (2,)}, {}) as writer:
        writer.add("x", np.zeros(2, np.float32))
    with pytest.raises(Refused, match="is a safetensors file, but no patch"):
        Patch(tmp_path / "floats")
    stored = TensorFile(task.patch)
    huge = json.loads(stored[MANIFEST].tobytes())["tensors"]
    next(iter(huge.values()))["shape"] = [2**47, 2**47]  # whose runs alone would not fit into memory
    for change in ({"format": 2}, {"before": "00"}, {"tensors": {}}, {"tensors": {"x": {}}}, {"tensors": huge}):
        manifest = json.dumps(json.loads(stored[MANIFEST].tobytes()) | change).encode()
        arrays = {name: stored[name] for name in stored}
        arrays[MANIFEST] = np.frombuffer(manifest + b" " * (-len(manifest) % 8), np.uint8)
        with TensorWriter(tmp_path / "p", {name: x.shape for name, x in arrays.items()}, {}) as writer:
            for name, array in arrays.items():
                writer.add(name, array)
        with pytest.raises(Refused, match="its manifest is not that of a patch of format 1"):
            Patch(tmp_path / "p")
        (tmp_path / "p").unlink()


def test_models_that_differ_in_more_than_integers_have_no_patch(make, tmp_path):
    one, floats = make([GGML.Q4_0]), make([GGML.F16, GGML.Q4_0], seed=1)
    with pytest.raises(Refused, match="differs \\(another grid or shape\\), and a patch cannot carry that"):
        making.make(opened(one.before), opened(floats.before), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    changed = bytearray(one.before.read_bytes())
    place = changed.index(b"token_embd.weight")
    data = len(changed) - sum(x.nbytes for x in _data(one.before))
    assert place < data
    changed[data] ^= 1
    (tmp_path / "embedding.gguf").write_bytes(changed)
    with pytest.raises(Refused, match=r"model\.embed_tokens\.weight differs \(float values\)"):
        making.make(opened(one.before), opened(tmp_path / "embedding.gguf"), tmp_path / "none")


def _data(path: Path) -> list[np.ndarray]:
    import gguf

    return [tensor.data for tensor in gguf.GGUFReader(path).tensors]
