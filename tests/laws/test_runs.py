"""By runs of rows a model is what it is as a whole: the same tensors, digests and files."""

import json
import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from gguf_files import GGML, write
from hypothesis import given
from hypothesis import strategies as st
from samples import GRIDS, bits, random_tensor

from edgeqaf import checkpoint, runs
from edgeqaf.digest import tensor_digest
from edgeqaf.errors import GridError, Refused
from edgeqaf.imported import import_base
from edgeqaf.parts import join, split
from edgeqaf.qtensor import QTensor
from edgeqaf.runs import ahead, beside, cuts, digests, rows_in, rows_of, threads, whole
from edgeqaf.tensorfile import TensorFile
from edgeqaf.weightsfile import stored_bytes
from exporters.gguf import exporter
from exporters.gguf.artifact import StoredTensors

MIXED = [GGML.Q4_K, GGML.Q6_K, GGML.Q5_0, GGML.F16, GGML.BF16, GGML.Q8_0, GGML.Q3_K, GGML.Q4_0]
FEW = 300  # weights of a run: one row, in these files


def joined(grid, run):
    return run if grid == "float32" else join(GRIDS[grid], run)


def same(a, b):
    assert isinstance(a, QTensor) == isinstance(b, QTensor)
    if not isinstance(a, QTensor):
        assert np.array_equal(bits(a), bits(b))
        return
    theirs = split(b)
    assert a.grid == b.grid
    for name, array in split(a).items():
        assert array.dtype == theirs[name].dtype
        assert np.array_equal(array.view(np.uint8), theirs[name].view(np.uint8)), name


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=3), st.integers(1, 70))
def test_cuts_take_every_row_once_in_order_and_whole_units(shape, unit):
    found = list(cuts(tuple(shape), unit))
    assert found[0][0] == 0
    assert found[-1][1] == shape[0]
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(start % unit == 0 for start, _ in found)
    row = int(np.prod(shape[1:]))
    assert all((stop - start) * row <= max(runs.RUN, unit * row) for start, stop in found)


def test_a_number_is_one_row_and_no_rows_are_no_run():
    assert list(cuts(())) == [(0, 1)]
    assert list(cuts((0, 3))) == []


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_tensor_in_memory_by_rows(grid):
    q = random_tensor(grid, out=5)
    rows = rows_of({"w": q}, "w")
    halves = [rows(*each) for each in ((0, 2), (2, 5))]
    for name, array in split(q).items():
        assert all(np.shares_memory(half["codes"], q.codes) for half in halves)
        assert np.array_equal(np.concatenate([half[name] for half in halves]).view(np.uint8), array.view(np.uint8))
    same(whole(rows, grid, q.shape), q)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs") / "theirs.gguf", MIXED)


@pytest.mark.parametrize("each", [1, 3, 64])
def test_model_folders_and_gguf_files_by_rows(each, file, tmp_path):
    base = import_base(file, tmp_path / "base")
    found = dict(base.tensors)
    for tensors in (base.tensors, StoredTensors(file)):
        for name, (grid, shape) in base.outline().items():
            rows = tensors.rows(name)
            for start in range(0, shape[0], each):
                stop = min(start + each, shape[0])
                same(joined(grid, rows(start, stop)), joined(grid, rows_in(found[name], name)(start, stop)))


def test_the_size_of_a_run_changes_no_byte_of_a_base_or_of_a_file(file, tmp_path, monkeypatch):
    import_base(file, tmp_path / "base")
    exporter.export(checkpoint.load(tmp_path / "base"), tmp_path / "whole.gguf")
    monkeypatch.setattr(runs, "RUN", FEW)
    import_base(file, tmp_path / "again")
    exporter.export(checkpoint.load(tmp_path / "again"), tmp_path / "by-rows.gguf")
    for name in ("edgeqaf.json", "model.safetensors"):
        assert (tmp_path / "base" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    whole, by_rows = ((tmp_path / name).read_bytes() for name in ("whole.gguf", "by-rows.gguf"))
    assert whole == by_rows == file.read_bytes()


def test_no_run_is_larger_than_asked_for_while_a_model_goes_in_and_out(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUN", FEW)
    seen = []
    for owner, name in (("edgeqaf.tensorfile.TensorFile", "rows"), ("exporters.gguf.rows.InFile", "read")):
        original = _found(owner, name)

        def counted(self, *arguments, original=original):
            found = original(self, *arguments)
            seen.append((found["codes"] if isinstance(found, dict) else found).size)
            return found

        monkeypatch.setattr(f"{owner}.{name}", counted)
    base = import_base(file, tmp_path / "base")
    exporter.export(checkpoint.load(tmp_path / "base"), tmp_path / "out.gguf")
    places = StoredTensors(file).places.values()
    most = max(place.unit * place.shape[-1] for place in places if len(place.shape) == 2)
    assert most < max(np.prod(shape) for _, shape in base.outline().values())
    assert max(seen) == most  # whole heads of the matrices whose rows are interleaved


def _found(owner, name):
    module, _, kind = owner.rpartition(".")
    return getattr(getattr(__import__(module, fromlist=[kind]), kind), name)


def test_digests_by_rows_are_those_of_whole_tensors(file, tmp_path, monkeypatch):
    base = import_base(file, tmp_path / "base")
    expected = {name: tensor_digest(name, tensor) for name, tensor in base.tensors.items()}
    monkeypatch.setattr(runs, "RUN", FEW)
    in_memory = dict(base.tensors)
    assert dict(digests(partial(rows_of, in_memory), base.outline())) == expected
    assert dict(digests(partial(rows_of, base.tensors), base.outline())) == expected
    assert dict(digests(StoredTensors(file).rows, base.outline())) == expected


def test_ahead_keeps_the_order_and_makes_few_more_than_were_taken():
    made, lock = [], threading.Lock()

    def make(start, stop):
        with lock:
            made.append(start)
        return start, stop

    wanted = [(i, i + 1) for i in range(50)]
    for taken, found in enumerate(ahead(make, wanted), 1):
        assert found == wanted[taken - 1]
        assert len(made) <= taken + threads() + 1
    assert sorted(made) == list(range(50))
    assert list(ahead(make, [(7, 8)])) == [(7, 8)]
    assert list(ahead(make, [])) == []


def test_what_a_run_raises_is_raised_in_its_turn():
    def make(start, stop):
        if start in (3, 4):
            raise Refused(f"run {start}", "")
        return start

    found = []
    with pytest.raises(Refused, match="run 3"):
        found.extend(ahead(make, [(i, i + 1) for i in range(9)]))
    assert found == [0, 1, 2]


def test_a_manifest_of_another_shape_than_the_arrays_is_refused(file, tmp_path):
    base = import_base(file, tmp_path / "base")
    name = next(name for name, (grid, _) in base.outline().items() if grid != "float32")
    manifest = json.loads((tmp_path / "base" / "edgeqaf.json").read_text())
    out, inputs = manifest["tensors"][name]["shape"]
    for shape in ([out - 1, inputs], [out + 1, inputs], [out, inputs, 1], [out], "many"):
        manifest["tensors"][name]["shape"] = shape
        (tmp_path / "base" / "edgeqaf.json").write_text(json.dumps(manifest))
        with pytest.raises(Refused, match=f"{name}(.codes)? (has|does not match)"):
            checkpoint.verify(checkpoint.load(tmp_path / "base"))


def test_the_bytes_that_are_planned_are_those_written_but_for_floats_that_need_fewer(file, tmp_path):
    base = import_base(file, tmp_path / "base")
    written = TensorFile(tmp_path / "base" / checkpoint.WEIGHTS)
    each = {
        key: written[key].nbytes * (1 if "." in key.split(".weight")[-1] else 4 // written[key].itemsize)
        for key in written
    }
    assert stored_bytes(base.outline()) == sum(each.values())


@pytest.mark.parametrize(
    ("part", "change"),
    [("codes", lambda x: x.astype(np.int16) + 256), ("codes", lambda x: x[:, :-32]), ("scale", lambda x: x[:, :-1]),
     ("scale", lambda x: x + np.float32(2.0**-20))],
    ids=["codes that would wrap", "fewer codes", "fewer scales", "scales no float16 holds"],
)  # fmt: skip
def test_a_tensor_off_its_grid_is_not_split_into_parts(part, change):
    q = random_tensor(GRIDS["q4_0"]).replace(scale=np.ones((4, 3), np.float32))
    rows_of({"w": q}, "w")
    with pytest.raises(GridError, match=r"w(\.scale)?(:|\[0, 0\] =) "):
        rows_of({"w": q.replace(**{part: change(getattr(q, part))})}, "w")


@given(st.lists(st.integers(), max_size=20), st.integers(1, 4))
def test_items_made_beside_come_in_order_and_none_too_early(items, most):
    """No more are made than have been taken, but for ``most``; another thread makes them."""
    made, taken, threads_seen = [], [], set()

    def make():
        for item in items:
            threads_seen.add(threading.get_ident())
            made.append(item)
            yield item

    for item in beside(make(), most):
        assert len(made) <= len(taken) + 1 + most
        taken.append(item)
    assert taken == made == items
    assert threading.get_ident() not in threads_seen


def test_what_making_raises_is_raised_where_it_is_taken():
    def make():
        yield 1
        raise Refused("no more")

    found = beside(make())
    assert next(found) == 1
    with pytest.raises(Refused, match="no more"):
        next(found)
