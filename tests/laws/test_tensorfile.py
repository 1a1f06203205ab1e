"""The safetensors container: we read what the library writes, it reads ours, and nothing malformed passes."""

import json
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgeqaf.errors import Refused
from edgeqaf.tensorfile import DTYPES, TensorFile, TensorWriter

WITH_NUMPY = [name for name in DTYPES if name != "BF16"]  # numpy of itself has no bfloat16
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(WITH_NUMPY), shapes),
    max_size=6,
)


def arrays_of(described, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for name, (kind, shape) in described.items():
        raw = rng.integers(0, 2 if kind == "BOOL" else 256, prod(shape) * DTYPES[kind].itemsize, np.uint8)
        made[name] = raw.view(DTYPES[kind]).reshape(shape)
    return made


def written(path, arrays):
    with TensorWriter(path, {n: a.shape for n, a in arrays.items()}, {"format": "pt"}) as file:
        for name, array in arrays.items():
            file.add(name, array)
    return path


def alike(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=100, deadline=None)
@given(tensors)
def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path_factory, described):
    arrays = arrays_of(described)
    folder = tmp_path_factory.mktemp("files")
    ours = written(folder / "ours", arrays)
    theirs = load_file(ours)
    assert set(theirs) == set(arrays) == set(TensorFile(ours))
    assert all(alike(theirs[n], a) and alike(TensorFile(ours)[n], a) for n, a in arrays.items())
    with safe_open(ours, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    save_file(arrays, folder / "theirs")
    read = TensorFile(folder / "theirs")
    assert all(alike(read[n], a) and (read.dtype(n), read.shape(n)) == described[n] for n, a in arrays.items())


@settings(max_examples=50, deadline=None)
@given(tensors)
def test_every_tensor_lies_at_a_multiple_of_its_items_size(tmp_path_factory, described):
    raw = written(tmp_path_factory.mktemp("files") / "f", arrays_of(described)).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % DTYPES[entry["dtype"]].itemsize == 0


def test_the_order_of_adding_decides_the_place_and_nothing_else(tmp_path):
    arrays = arrays_of({"a": ("U8", (16,)), "b": ("F32", (4, 2)), "c": ("I8", (3,)), "d": ("F16", (5,))})
    first, second = (written(tmp_path / n, dict(order)) for n, order in
                     (("1", arrays.items()), ("2", reversed(arrays.items()))))  # fmt: skip
    assert first.stat().st_size == second.stat().st_size
    assert all(alike(TensorFile(first)[n], TensorFile(second)[n]) for n in arrays)
    assert written(tmp_path / "3", arrays).read_bytes() == first.read_bytes()


@pytest.fixture
def good(tmp_path):
    return written(tmp_path / "good", arrays_of({"a": ("U8", (16,)), "b": ("F32", (4, 2)), "c": ("I8", (3,))}))


def test_a_file_cut_anywhere_is_refused(good, tmp_path):
    whole = good.read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(Refused, match="cut: "):
            TensorFile(tmp_path / "cut")


def test_a_flipped_bit_of_the_header_is_refused_or_names_or_retypes_a_tensor(good, tmp_path):
    whole = good.read_bytes()
    expected = {name: (array.shape, array.tobytes()) for name, array in load_file(good).items()}
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                found = TensorFile(tmp_path / "damaged")
            except Refused:
                continue
            same = set(found) == set(expected) and all(found.shape(n) == s for n, (s, _) in expected.items())
            assert not same or all(found[n].tobytes() == raw for n, (_, raw) in expected.items())


def described(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[1]", "not a list of at most"),
        (b"{{", "its header is no JSON"),
        (b"[" * 50000, "nested too deeply"),
        (b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "a": {}}', "says 'a' twice"),
        (b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}', "says 'dtype' twice"),
        ({"a": entry("F8")}, "'a' is of type 'F8'; known: F64"),
        ({"a\n": entry()}, r"'a\\n' is of type"),
        ({"a": 3}, "'a' is of type 'None'"),
        ({"a": entry(shape=(-4,))}, r"a has shape \[-4\]"),
        ({"a": entry(shape=(4.0,))}, r"a has shape \[4\.0\]"),
        ({"a": entry(shape=(True, 4))}, r"a has shape \[True, 4\]"),
        ({"a": entry(offsets=(0, 4, 4))}, r"at \[0, 4, 4\]"),
        ({"a": entry(shape=(5,))}, r"a, U8 \[5\], does not fit bytes 0 to 4"),
        ({"a": entry(shape=(2**62, 4), offsets=(0, 4))}, "does not fit bytes 0 to 4"),
        ({"a": entry(offsets=(0, 8), shape=(8,))}, "does not fit bytes 0 to 8"),
        ({"a": entry(), "b": entry()}, "b begins at 0, the one before it ends at 4"),
        ({"a": entry(shape=(2,), offsets=(2, 4))}, "a begins at 2, the one before it ends at 0"),
        ({"a": entry(shape=(2,), offsets=(0, 2))}, "bytes long, but its tensors end at byte"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_header_is_refused_with_its_reason(header, said, tmp_path):
    with pytest.raises(Refused, match=said):
        TensorFile(described(tmp_path / "bad", header, bytes(4)))


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    (tmp_path / "bad").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(Refused, match=f"would take {2**60} bytes, the file has 10"):
        TensorFile(tmp_path / "bad")


def test_a_file_that_changes_between_reads_is_refused(good):
    opened = TensorFile(good)
    good.write_bytes(good.read_bytes() + b"\0")
    with pytest.raises(Refused, match="changed while it was read"):
        opened["a"]


def test_what_is_no_plain_file_is_refused(tmp_path):
    with pytest.raises(Refused, match="No such file"):
        TensorFile(tmp_path / "absent")
    with pytest.raises(Refused, match="not a regular file"):
        TensorFile(tmp_path)


def test_a_tensor_of_another_shape_than_announced_is_a_mistake(tmp_path):
    with (
        pytest.raises(ValueError, match=r"a has shape \(3,\), \(4,\) was announced"),
        TensorWriter(tmp_path / "f", {"a": (4,)}, {}) as file,
    ):
        file.add("a", np.zeros(3, np.uint8))
