"""Float models are read as they are, under one name per tensor, and refused when they are not what they say."""

import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from samples import bits

from edgeqaf.errors import Refused
from edgeqaf.quantize import plan
from edgeqaf.source import EMBEDDING, HEAD, FloatModel

UP = "model.layers.1.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_float_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    shutil.copytree(tiny_float_model, tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")


def edit_weights(folder: Path, **changes) -> dict[str, np.ndarray]:
    arrays = load_file(folder / "model.safetensors") | changes
    arrays = {name: values for name, values in arrays.items() if values is not None}
    save_file(arrays, folder / "model.safetensors")
    return arrays


def split_in_shards(folder: Path, count: int = 3) -> dict[str, str]:
    """Replace the one file by shards and an index; return its weight map."""
    arrays = load_file(folder / "model.safetensors")
    names = sorted(arrays)
    weight_map = {name: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: arrays[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), "utf-8")


def test_every_tensor_is_read_exactly_and_in_order(tiny_float_model):
    stored = load_file(tiny_float_model / "model.safetensors")
    found = FloatModel(tiny_float_model)
    assert list(found) == sorted(stored)
    assert len(found) == len(stored)
    for name, values in stored.items():
        assert found[name].dtype == np.float32
        assert found.shape(name) == values.shape
        assert np.array_equal(bits(found[name]), bits(values.astype(np.float32)))
    with pytest.raises(KeyError):
        found["model.layers.9.mlp.up_proj.weight"]


def test_the_linears_are_the_seven_of_every_layer(tiny_float_model):
    found = FloatModel(tiny_float_model)
    linear = [name for name in found if found.is_linear(name)]
    assert len(linear) == 2 * 7
    assert not any("norm" in name or "embed" in name for name in linear)
    assert not found.is_linear("model.layers.0.mlp.up_proj.weight.more")
    assert not found.is_linear("x.model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_every_float_type_is_widened_to_the_same_values(folder, dtype):
    values = np.arange(-32, 32, dtype=np.float32).reshape(1, 64).repeat(96, 0) / 16
    edit_weights(folder, **{UP: values.astype(dtype)})
    assert np.array_equal(FloatModel(folder)[UP], values)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.bool_])
def test_a_tensor_of_integers_is_refused_by_name_and_type(folder, dtype):
    edit_weights(folder, **{UP: np.ones((96, 64), dtype)})
    with pytest.raises(Refused, match=rf"{UP} is [A-Z]+\d*, not a float type"):
        FloatModel(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_weight_that_is_not_finite_is_refused_with_its_index(folder, value):
    values = np.zeros((96, 64), np.float32)
    values[17, 42] = values[90, 1] = value
    edit_weights(folder, **{UP: values})
    with pytest.raises(Refused, match=rf"{UP}\[17, 42\] is {value}"):
        FloatModel(folder)[UP]


def test_a_float64_weight_beyond_float32_is_refused(folder):
    edit_weights(folder, **{UP: np.full((96, 64), 1e39)})
    with pytest.raises(Refused, match=rf"{UP}\[0, 0\] is inf"):
        FloatModel(folder)[UP]


def test_a_tied_head_is_the_embedding_however_it_was_stored(folder):
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    expected = FloatModel(folder)
    for changes in ({EMBEDDING: None, HEAD: embedding}, {EMBEDDING: embedding, HEAD: embedding}):
        edit_weights(folder, **changes)
        found = FloatModel(folder)
        assert list(found) == list(expected)
        assert np.array_equal(bits(found[EMBEDDING]), bits(embedding.astype(np.float32)))
        assert found.shape(EMBEDDING) == embedding.shape


def test_a_head_that_is_tied_and_differs_is_refused(folder):
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    other = embedding.copy()
    other[5, 5] += 1
    edit_weights(folder, **{HEAD: other})
    with pytest.raises(Refused, match=r"differ though config\.json ties them") as refused:
        FloatModel(folder)
    assert HEAD in refused.value.cause
    assert EMBEDDING in refused.value.cause
    edit_config(folder, tie_word_embeddings=False)
    assert set(FloatModel(folder)) >= {HEAD, EMBEDDING}


@pytest.mark.parametrize("missing", [EMBEDDING, "model.norm.weight"])
def test_a_missing_tensor_is_refused_by_name(folder, missing):
    edit_weights(folder, **{missing: None})
    with pytest.raises(Refused, match=f"no tensor {missing}"):
        FloatModel(folder)


def test_an_untied_model_needs_its_head(folder):
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(Refused, match=f"no tensor {HEAD}"):
        FloatModel(folder)


def test_shards_are_read_as_the_one_file_they_were(folder, tiny_float_model):
    split_in_shards(folder)
    whole, found = FloatModel(tiny_float_model), FloatModel(folder)
    assert list(found) == list(whole)
    assert all(np.array_equal(bits(found[name]), bits(whole[name])) for name in whole)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "", ".", "..", 7, None]
)
def test_a_shard_outside_the_folder_is_refused(folder, shard):
    weight_map = split_in_shards(folder)
    (folder / "sub").mkdir()
    for place in (folder / "sub", folder.parent):
        save_file({UP: np.zeros((96, 64), np.float32)}, place / "x.safetensors")
    write_index(folder, weight_map | {UP: shard})
    with pytest.raises(Refused, match=re.escape(f"shard {shard!r}")):
        FloatModel(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors", 5], ids=str)
def test_a_malformed_index_is_refused(folder, weight_map):
    split_in_shards(folder)
    write_index(folder, weight_map)
    with pytest.raises(Refused):
        FloatModel(folder)
    (folder / INDEX).write_text("{}", "utf-8")
    with pytest.raises(Refused):
        FloatModel(folder)


def test_the_rotary_table_of_old_checkpoints_is_left_out(folder):
    expected = list(FloatModel(folder))
    edit_weights(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    assert list(FloatModel(folder)) == expected
    split_in_shards(folder)
    assert list(FloatModel(folder)) == expected


def test_a_missing_shard_is_refused_by_name(folder):
    shard = sorted(split_in_shards(folder).values())[1]
    (folder / shard).unlink()
    with pytest.raises(Refused, match=shard):
        FloatModel(folder)


def test_a_tensor_that_its_shard_lacks_is_refused_by_name(folder):
    weight_map = split_in_shards(folder)
    arrays = load_file(folder / weight_map[UP])
    del arrays[UP]
    save_file(arrays, folder / weight_map[UP])
    with pytest.raises(Refused, match=UP):
        FloatModel(folder)


def test_a_tensor_in_two_shards_is_refused_by_name(folder):
    weight_map = split_in_shards(folder)
    other = next(shard for shard in sorted(weight_map.values()) if shard != weight_map[UP])
    save_file(load_file(folder / other) | {UP: np.zeros((96, 64), np.float32)}, folder / other)
    with pytest.raises(Refused, match=UP):
        FloatModel(folder)


def test_a_truncated_file_is_refused_at_every_length(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in [0, 4, 8, 100, 1000, *range(0, len(whole), len(whole) // 20)]:
        file.write_bytes(whole[:length])
        with pytest.raises(Refused, match=r"model\.safetensors"):
            FloatModel(folder)


def test_pickles_are_never_opened(folder):
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(Refused, match=r"model\.safetensors"):
        FloatModel(folder)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "LLAMA", "", None, 7, ["llama"]], ids=str)
def test_an_unknown_architecture_is_refused_with_the_known_ones(folder, architecture):
    edit_config(folder, model_type=architecture)
    with pytest.raises(Refused, match=f"architecture {str(architecture)!r}".replace("[", r"\[")) as refused:
        FloatModel(folder)
    assert "llama" in refused.value.remedy


@pytest.mark.parametrize("make", [lambda p: None, Path.mkdir, Path.touch], ids=["absent", "empty folder", "file"])
def test_what_is_no_model_folder_is_refused(tmp_path, make):
    make(tmp_path / "model")
    with pytest.raises(Refused, match=str(tmp_path / "model")):
        FloatModel(tmp_path / "model")


def test_a_linear_weight_that_is_no_matrix_is_refused_by_name(folder):
    edit_weights(folder, **{UP: np.zeros(64, np.float32)})
    with pytest.raises(Refused, match=UP):
        plan(folder, "q4_0")


def test_a_real_model_with_its_head_stored_for_both(shared):
    folder = shared / "models" / "tinystories656k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    stored = load_file(folder / "model.safetensors")
    assert HEAD in stored
    assert EMBEDDING not in stored
    found = FloatModel(folder)
    assert HEAD not in found
    assert np.array_equal(bits(found[EMBEDDING]), bits(stored[HEAD].astype(np.float32)))
    assert sum(found[name].size for name in found) == 656_000
    assert sum(found.is_linear(name) for name in found) == 2 * 7
