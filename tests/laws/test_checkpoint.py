"""A model folder gives back every bit that was saved, is the same bytes each time, and refuses the rest."""

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from samples import EVERY, GRIDS, bits, random_tensor

from edgeqaf import __version__, weightsfile
from edgeqaf.checkpoint import MANIFEST, WEIGHTS, QModel, load, save, verify
from edgeqaf.companions import COMPANIONS, LINE
from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.errors import GridError, OutOfResources, Refused, UsageError
from edgeqaf.packing import pack_codes, unpack_codes
from edgeqaf.parts import join, split
from edgeqaf.qtensor import QTensor, check
from edgeqaf.tensorfile import TensorWriter

CONFIG = {"model_type": "llama", "hidden_size": 96, "rms_norm_eps": 1e-5, "name": "Grüße"}
FLOATS = {
    "narrow": np.array([0.0, -0.0, 1.5, -(2.0**-130), 2.0**100], np.float32),
    "wide": np.array([[1 + 2.0**-9, 1.0], [3.4028235e38, 1e-45]], np.float32),
    "scalar": np.array(0.1, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=3), "utf-8")
    (folder / "tokenizer.json").write_bytes(b'{"opaque": "\\u00e9"}\r\n')
    (folder / "unrelated.bin").write_bytes(b"stays behind")
    return folder


def model(source: Path, **more) -> QModel:
    tensors = {f"{name}.weight": random_tensor(grid, seed) for seed, (name, grid) in enumerate(GRIDS.items())}
    return QModel(CONFIG, {**tensors, **FLOATS, **more}, source)


OPTIONS = {"grid": "q4_0", "quantizer": "rtn"}


def save_base(source: Path, target: Path, **more) -> QModel:
    return save(model(source, **more), target, kind="base", parent=None, options=OPTIONS)


@pytest.fixture
def base(source: Path, tmp_path: Path) -> Path:
    save_base(source, tmp_path / "base")
    return tmp_path / "base"


def edit_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / MANIFEST).read_text("utf-8")) | changes
    kept = {key: value for key, value in manifest.items() if value != "gone"}
    (folder / MANIFEST).write_text(json.dumps(kept), "utf-8")


def edit_weights(folder: Path, **changes) -> None:
    arrays = load_file(folder / WEIGHTS) | changes
    save_file({key: value for key, value in arrays.items() if value is not None}, folder / WEIGHTS)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_bit_comes_back(source, tmp_path):
    saved = model(source)
    returned = save(saved, tmp_path / "out", kind="base", parent=None, options={})
    for loaded in (returned, load(tmp_path / "out")):
        verify(loaded)
        assert list(loaded.tensors) == sorted(saved.tensors)
        assert len(loaded.tensors) == len(saved.tensors)
        assert loaded.config == CONFIG
        for name, tensor in saved.tensors.items():
            found = loaded.tensors[name]
            assert tensor_digest(name, found) == tensor_digest(name, tensor)
            if not isinstance(tensor, QTensor):
                assert found.dtype == np.float32
                assert np.array_equal(bits(found), bits(tensor))
                continue
            assert found.grid is tensor.grid
            for part in ("codes", "scale", "zero"):
                ours, theirs = getattr(tensor, part), getattr(found, part)
                assert (ours is None) == (theirs is None)
                assert ours is None or (ours.dtype == theirs.dtype and np.array_equal(bits(ours), bits(theirs)))
    assert [name for name, _ in load(tmp_path / "out").quantized()] == sorted(f"{grid}.weight" for grid in GRIDS)


def test_any_layout_in_memory_is_saved_as_what_it_means(source, tmp_path):
    plain = save_base(source, tmp_path / "plain", extra=np.arange(12, dtype=np.float32).reshape(3, 4) + 2.0**-12)
    for i, rearranged in enumerate([np.asfortranarray, lambda x: np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2]]):
        tensors = {}
        for name, tensor in plain.tensors.items():
            if isinstance(tensor, QTensor):
                tensors[name] = join(tensor.grid, {part: rearranged(a) for part, a in split(tensor).items()})
            else:
                tensors[name] = rearranged(tensor) if tensor.ndim == 2 else tensor
        target = tmp_path / f"rearranged{i}"
        save(QModel(CONFIG, tensors, source), target, kind="base", parent=None, options=OPTIONS)
        assert read(target) == read(tmp_path / "plain")


def test_two_saves_are_the_same_bytes_wherever_and_in_whatever_order(source, tmp_path):
    save_base(source, tmp_path / "a")
    os.utime(source / "config.json", (0, 0))
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(source, moved)
    backwards = QModel(CONFIG, dict(reversed(model(source).tensors.items())), moved)
    options = dict(reversed(OPTIONS.items()))
    save(backwards, tmp_path / "deep" / "b", kind="base", parent=None, options=options)
    assert read(tmp_path / "a") == read(tmp_path / "deep" / "b")
    again = load(tmp_path / "a")
    save(again, tmp_path / "c", kind="base", parent=None, options=OPTIONS)
    assert read(tmp_path / "c") == read(tmp_path / "a")


def test_the_folder_holds_what_is_documented_and_no_path_or_time(source, tmp_path):
    out = tmp_path / "out"
    made = save(model(source), out, kind="merged", parent="ab" * 32, options={"a": 1}, extra={"layers": {"x": 2}})
    files = read(out)
    assert set(files) == {"config.json", "tokenizer.json", WEIGHTS, MANIFEST}
    for name in set(files) & set(COMPANIONS):
        assert files[name].replace(LINE, b"", 1) == (source / name).read_bytes()
    assert json.loads(files["config.json"]) == {**CONFIG, "quantization_config": {"quant_method": "edgeqaf"}}
    manifest = json.loads(files[MANIFEST])
    assert set(manifest) == {"format", "kind", "root", "parent", "tensors", "tool", "options", "companions", "layers"}
    assert manifest["kind"] == "merged"
    assert manifest["parent"] == "ab" * 32
    assert manifest["options"] == {"a": 1}
    assert manifest["tool"] == {"edgeqaf": __version__}
    assert manifest["layers"] == {"x": 2}
    assert manifest["root"] == made.root == merkle_root(made.digests())
    assert manifest["tensors"]["wide"] == {"grid": "float32", "shape": [2, 2], "digest": made.digests()["wide"]}
    for content in files.values():
        assert str(tmp_path).encode() not in content
        assert b"/tmp/" not in content
        assert b"time" not in content.replace(b"runtime", b"")


def test_floats_are_narrowed_to_bfloat16_only_where_that_is_exact(source, tmp_path):
    rng = np.random.default_rng(0)
    exact = rng.integers(0, 2**16, 4096).astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    exact = exact[np.isfinite(exact)]
    more = {"exact": exact, "not quite": exact.copy()}
    more["not quite"].view(np.uint32)[7] |= 1
    made = save_base(source, tmp_path / "out", **more)
    stored = load_file(tmp_path / "out" / WEIGHTS)
    kinds = {"exact": ml_dtypes.bfloat16, "not quite": np.float32, "narrow": ml_dtypes.bfloat16, "wide": np.float32}
    for name, dtype in kinds.items():
        assert stored[name].dtype == dtype, name
        assert np.array_equal(bits(made.tensors[name]), bits({**more, **FLOATS}[name]))


def test_packed_codes_share_bytes_the_earlier_column_in_the_lower_bits():
    # Of the byte 0b00011011; 11 is no 3-bit code, nor 27 one of 5 bits in every byte.
    first = {2: [3, 2, 1, 0], 3: [11, 1], 4: [11, 1], 5: [27], 6: [27], 8: [27]}
    for grid in EVERY:
        every = np.arange(256, dtype=np.uint8).reshape(4, 64)
        codes = unpack_codes(every, grid)
        lanes = len(first[grid.bits])
        assert codes.dtype == np.int8
        assert codes.shape == (4, 64 * lanes)
        assert np.array_equal(pack_codes(codes, grid), every)
        assert codes.ravel()[0b00011011 * lanes :][:lanes].tolist() == first[grid.bits]
        if grid.bits == 8:
            assert codes[2, 0] == -128
        values = np.arange(grid.lo, grid.hi + 1).astype(np.int8)
        tuples = np.stack(np.meshgrid(*[values] * min(lanes, 4)), -1).reshape(len(values), -1)
        assert np.array_equal(unpack_codes(pack_codes(tuples, grid), grid), tuples)


def test_a_stray_bit_above_a_three_bit_code_is_refused():
    grid = next(g for g in EVERY if g.bits == 3)
    q = random_tensor(grid)
    packed = pack_codes(q.codes, grid)
    packed[1, 2] |= 0x80
    with pytest.raises(GridError, match=rf"outside {grid.name}'s \[0, 7\]"):
        check(q.replace(codes=unpack_codes(packed, grid)), "w")


def test_an_existing_folder_is_kept_without_force_and_replaced_with_it(source, base):
    before = read(base)
    with pytest.raises(UsageError, match=str(base)):
        save_base(source, base, more=np.zeros(3, np.float32))
    assert read(base) == before
    save(model(source, more=np.zeros(3, np.float32)), base, kind="base", parent=None, options={}, force=True)
    assert "more" in load(base).tensors


def test_a_model_may_be_saved_over_its_own_folder(base):
    before = load(base)
    digests = before.digests()
    save(before, base, kind="base", parent=None, options=OPTIONS, force=True)
    verify(load(base))
    assert load(base).digests() == digests


def test_a_tensor_off_its_grid_is_never_saved(source, tmp_path):
    q = random_tensor(GRIDS["q4_0"])
    with pytest.raises(GridError, match=r"bad.*codes span"):
        save_base(source, tmp_path / "out", bad=q.replace(codes=q.codes - 8))
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_keeps_other_bits_than_it_was_given_is_found_out_before_the_folder_is_visible(
    source, tmp_path, monkeypatch
):
    class WriterOnABadDisk(TensorWriter):
        def __init__(self, path, *rest):
            super().__init__(path, *rest)
            self.path = path

        def __exit__(self, *error):
            super().__exit__(*error)
            damaged = bytearray(self.path.read_bytes())
            damaged[-1] ^= 1
            self.path.write_bytes(damaged)

    monkeypatch.setattr(weightsfile, "TensorWriter", WriterOnABadDisk)
    with pytest.raises(Refused, match="does not match its digest"):
        save_base(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("missing", [MANIFEST, WEIGHTS, "config.json"])
def test_a_missing_file_is_refused_by_name(base, missing):
    (base / missing).unlink()
    with pytest.raises(Refused, match=missing.replace(".", r"\.")):
        load(base)


@pytest.mark.parametrize("number", [0, 2, "1", None, 1.5])
def test_another_format_number_is_refused(base, number):
    edit_manifest(base, format=number)
    with pytest.raises(Refused, match=f"format {number!r}; this version reads 1"):
        load(base)


@pytest.mark.parametrize("kind", ["run", "dist", None, ["base"], "gone"])
def test_a_folder_of_another_kind_is_no_model(base, kind):
    edit_manifest(base, kind=kind)
    with pytest.raises(Refused, match="not a model"):
        load(base)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "format": 1}', "duplicate key 'format'"),
        ('{"format": 1, "tensors": {"a": {"grid": "q4_0", "grid": "q4_0"}}}', "duplicate key 'grid'"),
        ("[1]", "a JSON list, not an object"),
        ("7", "a JSON int, not an object"),
        ('{"format": 1', "not readable JSON"),
        ("", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ('{"format": ' + "9" * 5000 + "}", "not readable JSON"),
        ('{"format": "\xff"}', "not readable JSON"),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("name", [MANIFEST, "config.json"])
def test_ambiguous_or_broken_json_is_refused(base, name, text, message):
    (base / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(Refused, match=message):
        load(base)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": "gone"}, {"tensors": 5}, {"tensors": []}, {"tensors": {}}, {"tensors": {"wide": 5}},
        {"tensors": {"wide": {}}}, {"tensors": {"wide": {"grid": "q9_9", "digest": "00"}}},
        {"tensors": {"wide": {"grid": 7, "digest": "00"}}}, {"tensors": {"wide": {"grid": "float32"}}},
        {"tensors": {"wide": {"grid": "float32", "digest": 5}}}, {"root": "gone"}, {"root": None}, {"root": "00" * 32},
        {"tensors": {"absent": {"grid": "q4_0", "shape": [4, 96], "digest": "00" * 32}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_does_not_describe_its_folder_is_refused(base, changes):
    edit_manifest(base, **changes)
    with pytest.raises(Refused):
        verify(load(base))


@pytest.mark.parametrize(
    "shape_of", [lambda c: c.ravel(), lambda c: c[None], lambda c: c[:0], lambda c: c[:-1], lambda c: c.reshape(2, -1)]
)
def test_codes_of_another_shape_are_refused(base, shape_of):
    codes = load_file(base / WEIGHTS)["q4_0.weight.codes"]
    edit_weights(base, **{"q4_0.weight.codes": np.ascontiguousarray(shape_of(codes))})
    with pytest.raises(Refused, match=r"q4_0\.weight"):
        verify(load(base))


def test_codes_and_parameters_of_another_type_are_refused(base):
    stored = load_file(base / WEIGHTS)
    for part, dtype in [
        ("codes", np.float32),
        ("codes", np.int8),
        ("codes", np.int16),
        ("scale", np.float64),
        ("scale", np.int8),
    ]:
        edit_weights(base, **stored | {f"q4_0.weight.{part}": stored[f"q4_0.weight.{part}"].astype(dtype)})
        with pytest.raises(Refused, match=r"q4_0\.weight"):
            verify(load(base))


def test_tensors_that_the_manifest_does_not_name_are_refused(base):
    edit_weights(base, stowaway=np.zeros(3, np.float32))
    with pytest.raises(Refused, match="stowaway"):
        verify(load(base))


def test_a_missing_part_is_refused_by_name(base):
    edit_weights(base, **{"q4_1.weight.zero": None})
    with pytest.raises(Refused, match=r"q4_1\.weight\.zero"):
        verify(load(base))


def test_a_tensor_edited_in_place_is_named(base):
    scale = load_file(base / WEIGHTS)["q8_0.weight.scale"]
    edit_weights(base, **{"q8_0.weight.scale": np.nextafter(scale, np.float16(0))})
    with pytest.raises(Refused, match=r"q8_0\.weight does not match its digest"):
        verify(load(base))


def test_a_full_disk_is_out_of_resources_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OutOfResources, match=r"needs 1\.\d MB, 0\.0 MB are free"):
        save_base(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
