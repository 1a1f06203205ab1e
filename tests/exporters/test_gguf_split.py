"""A model split over several GGUF files is the model, in and out: every file byte for byte, no file above its limit."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import GGML, write
from safetensors.numpy import load_file

from edgeqaf import checkpoint
from edgeqaf.checkpoint import QModel
from edgeqaf.companions import FRAME
from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ExportOptions
from edgeqaf.imported import import_base
from edgeqaf.qtensor import QTensor
from exporters.gguf import exporter
from exporters.gguf.artifact import SIZES
from exporters.gguf.container import SEAL, Value, padded
from exporters.gguf.planned import lay_out
from exporters.gguf.reader import parse
from exporters.gguf.split import COUNT, KEYS, NUMBER, TENSORS

MIXED = [GGML.Q4_K, GGML.Q6_K, GGML.Q5_0, GGML.F16, GGML.BF16, GGML.Q8_0, GGML.Q3_K]
SPLITS = [
    {"split_max_size": 100_000}, {"split_max_tensors": 1}, {"split_max_tensors": 12},
    {"split_max_size": 100_000, "small_first_shard": True},
]  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.gguf"))}


def exported(model: QModel, folder: Path, limit: int | None = None) -> Path:
    """The first file of an export as model.gguf; what was planned is what was written."""
    folder.mkdir()
    model = replace(model, asked=ExportOptions(split_max_bytes=limit))
    planned = exporter.sizes(model)
    first = exporter.export(model, folder / "model.gguf")
    assert [len(data) for data in contents(folder).values()] == planned
    assert exporter.plan(model) == sum(planned)
    assert first == min(folder.iterdir())
    return first


def root(path: Path) -> str:
    return merkle_root({name: tensor_digest(name, stored.tensor) for name, stored in exporter.read_back(path).items()})


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> QModel:
    return checkpoint.load(tiny_base)


# ---- files of another maker


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("kinds", [[GGML.Q4_0], MIXED], ids=["Q4_0", "mixed"])
def test_import_and_export_give_every_file_back_byte_for_byte(kinds, split, tmp_path):
    (tmp_path / "theirs").mkdir()
    first = write(tmp_path / "theirs" / "model.gguf", kinds, split=split)
    assert first.name.startswith("model-00001-of-000")
    made = import_base(first, tmp_path / "base")
    exported(made, tmp_path / "ours")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    unsplit = write(tmp_path / "whole.gguf", kinds)
    assert made.root == import_base(unsplit, tmp_path / "whole").root
    assert [*exporter.tensors(first)] == [*exporter.tensors(unsplit)]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_made_one_they_are_the_file_that_was_never_split(split, tmp_path):
    (tmp_path / "theirs").mkdir()
    made = import_base(write(tmp_path / "theirs" / "model.gguf", MIXED, split=split), tmp_path / "base")
    whole = write(tmp_path / "whole.gguf", MIXED)
    assert exported(made, tmp_path / "one", 10**9).read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("changes", [{}, {"alignment": 64}, {"alignment": 2**14}, {"tied": True}], ids=str)
def test_a_whole_file_is_split_and_made_whole_again(changes, tmp_path):
    whole = write(tmp_path / "whole.gguf", MIXED, **changes)
    made = import_base(whole, tmp_path / "base")
    first = exported(made, tmp_path / "split", 200_000)
    assert len(contents(tmp_path / "split")) > 3
    again = import_base(first, tmp_path / "again")
    assert again.root == made.root
    exported(again, tmp_path / "kept")
    assert contents(tmp_path / "kept") == contents(tmp_path / "split")
    assert exported(again, tmp_path / "one", 10**9).read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_that_was_merged_or_is_the_only_one_is_whole(count, tmp_path):
    (tmp_path / "theirs").mkdir()
    write(tmp_path / "theirs" / "model.gguf", [GGML.Q4_0], split={"split_max_tensors": 12})
    split = import_base(tmp_path / "theirs" / "model-00001-of-00002.gguf", tmp_path / "base")
    raw = bytearray(exported(split, tmp_path / "one", 10**9).read_bytes())
    parsed = parse(tmp_path / "one" / "model.gguf", SIZES)
    tensors = [(name, info.shape, info.type, info.size) for name, info in parsed.tensors.items()]
    keys = {key: Value(KEYS[key], value) for key, value in zip(KEYS, (0, count, len(tensors)), strict=True)}
    (part,) = lay_out({**parsed.metadata, **keys}, tensors, None, sealed=False)
    path = tmp_path / "merged.gguf"
    path.write_bytes(part.header + raw[parsed.start :])
    merged = import_base(path, tmp_path / "merged")
    assert merged.root == split.root
    assert exported(merged, tmp_path / "ours").read_bytes() == path.read_bytes()


def test_the_frame_of_one_file_has_the_entries_it_always_had(tmp_path):
    import_base(write(tmp_path / "m.gguf", [GGML.Q4_0]), tmp_path / "base")
    assert set(load_file(tmp_path / "base" / FRAME)) == {"header", "length"}


def test_after_tuning_no_header_differs(tmp_path):
    (tmp_path / "theirs").mkdir()
    made = import_base(write(tmp_path / "theirs" / "model.gguf", MIXED, split=SPLITS[0]), tmp_path / "base")
    tensors = {
        name: t.replace(codes=np.where(t.codes < t.grid.hi, t.codes + 1, t.codes)) if isinstance(t, QTensor) else t
        for name, t in made.tensors.items()
    }
    tuned = QModel(made.config, tensors, made.folder)
    assert root(exported(tuned, tmp_path / "tuned")) == merkle_root(tuned.digests()) != made.root
    for name, before in contents(tmp_path / "theirs").items():
        after, start = (tmp_path / "tuned" / name).read_bytes(), parse(tmp_path / "theirs" / name, SIZES).start
        assert (len(after), after[:start]) == (len(before), before[:start])


# ---- our own


@pytest.mark.parametrize("limit", [1, 50_000, 400_000, 10**9])
def test_no_file_is_larger_than_the_limit_unless_one_tensor_is(limit, base, tmp_path):
    first = exported(base, tmp_path / "dist", limit)
    assert root(first) == base.root
    headers = [parse(path, SIZES) for path in sorted((tmp_path / "dist").iterdir())]
    whole = len(headers) == 1
    assert whole == (limit == 10**9)
    for i, header in enumerate(headers):
        assert header.tensors
        assert header.seen.size <= limit or len(header.tensors) == 1
        assert list(header.metadata)[-1] == SEAL
        assert {key: header.metadata[key].data for key in KEYS if key in header.metadata} == (
            {} if whole else {NUMBER: i, COUNT: len(headers), TENSORS: sum(len(h.tensors) for h in headers)}
        )
        assert i == 0 or set(header.metadata) == {*KEYS, SEAL}
    for header, follower in pairwise(headers):  # none could have held one tensor more
        assert header.seen.size + padded(next(iter(follower.tensors.values())).size) > limit - 200


@pytest.mark.parametrize("limit", [1, 50_000])
def test_another_reader_sees_the_same_tensors_in_the_same_order(limit, base, tmp_path):
    exported(base, tmp_path / "dist", limit)
    whole = gguf.GGUFReader(exported(base, tmp_path / "whole"))
    parts = [gguf.GGUFReader(path) for path in sorted((tmp_path / "dist").iterdir())]
    found = [t for part in parts for t in part.tensors]
    assert [(t.name, t.tensor_type) for t in found] == [(t.name, t.tensor_type) for t in whole.tensors]
    assert all((a.data == b.data).all() for a, b in zip(found, whole.tensors, strict=True))
    named = set(parts[0].fields) - set(whole.fields)
    assert named == set(KEYS)
    for part in parts:
        assert {k: part.fields[k].types[-1].name for k in KEYS} == {k: kind.name for k, kind in KEYS.items()}


def test_two_exports_are_the_same_and_go_through_a_base_unchanged(base, tmp_path):
    first = exported(base, tmp_path / "one", 50_000)
    exported(base, tmp_path / "two", 50_000)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    again = import_base(first, tmp_path / "base")
    assert again.root == base.root
    exported(again, tmp_path / "kept")
    assert contents(tmp_path / "kept") == contents(tmp_path / "one")
    exported(again, tmp_path / "other", 80_000)
    exported(base, tmp_path / "direct", 80_000)
    assert contents(tmp_path / "other") == contents(tmp_path / "direct")


def test_tensors_that_are_no_parameters_are_split_too(base, tmp_path):
    model = replace(base, config=dict(base.config) | {"rope_parameters": LLAMA3}, manifest={})
    whole = exported(model, tmp_path / "whole")
    first = exported(model, tmp_path / "split", 50_000)
    assert "rope_freqs.weight" in parse(first, SIZES).tensors
    made = import_base(first, tmp_path / "base")
    exported(made, tmp_path / "kept")
    assert contents(tmp_path / "kept") == contents(tmp_path / "split")
    assert exported(made, tmp_path / "one", 10**9).read_bytes() == whole.read_bytes()


def test_one_that_fits_is_the_file_of_an_export_without_a_limit(base, tmp_path):
    whole = exported(base, tmp_path / "whole")
    size = whole.stat().st_size
    assert exported(base, tmp_path / "fits", size).read_bytes() == whole.read_bytes()
    exported(base, tmp_path / "split", size - 1)
    assert len(contents(tmp_path / "split")) == 2


def test_a_patch_is_refused_and_told_the_way(base, tmp_path):
    first = exported(base, tmp_path / "dist", 50_000)
    with pytest.raises(Refused, match=rf"{first.name} is the first of {len(contents(tmp_path / 'dist'))} files") as no:
        exporter.edit(first, b"")
    assert "llama-gguf-split --merge" in no.value.remedy
