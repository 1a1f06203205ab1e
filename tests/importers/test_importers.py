"""A checkpoint that another tool quantized is taken over number by number: its weights, in bits, are ours."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_folder import CONFIG, FORMATS, HIDDEN, Linear, folder, linear
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING

from edgeqaf import checkpoint, plugins
from edgeqaf.imported import import_base, plan
from edgeqaf.importing import Arrays
from edgeqaf.modeling import skeleton
from edgeqaf.prequantized import Imported
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.shards import Shards
from edgeqaf.source import LINEARS, has_bias, is_linear

UP = "model.layers.0.mlp.up_proj"
each_format = pytest.mark.parametrize("name", FORMATS)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_every_importer_has_a_writer_here():
    assert {name.removesuffix("_v2").replace("-", "_") for name in FORMATS} == set(plugins.names("importers"))


@each_format
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_decode_is_the_format_s_own_formula_bit_for_bit(name, group, symmetric, tmp_path):
    made = folder(tmp_path / "theirs", name, group, symmetric=symmetric)
    found = Imported(made.path)
    assert set(found) == {f"{layer}.weight" for layer in made.linears} | set(made.floats)
    assert len(found) == len(set(found))
    for layer, theirs in made.linears.items():
        ours = found[f"{layer}.weight"]
        assert isinstance(ours, QTensor)
        assert ours.grid.name == ("q4_0" if symmetric else "uint4")
        assert same(decode(ours), theirs.weights)
        assert np.array_equal(ours.codes, theirs.codes)
        if not symmetric:
            assert np.array_equal(ours.zero[:, :: theirs.group // 32 if group > 0 else 99], theirs.zero)
    for tensor, values in made.floats.items():
        assert same(found[tensor], values.astype(np.float32))


@pytest.mark.parametrize("name", ["gptq", "gptq_v2", "compressed-tensors"])
@pytest.mark.parametrize("group", [32, 128, -1])
def test_symmetric_bytes_lie_on_q8_0(name, group, tmp_path):
    made = folder(tmp_path / "theirs", name, group, symmetric=True, bits=8)
    found = Imported(made.path)
    for layer, theirs in made.linears.items():
        ours = found[f"{layer}.weight"]
        assert ours.grid.name == "q8_0"
        assert same(decode(ours), theirs.weights)


@each_format
def test_the_last_group_of_a_row_may_be_shorter(name, tmp_path):
    made = folder(tmp_path / "theirs", name, group=96)  # rows of 128 and 256
    found = Imported(made.path)
    assert all(same(decode(found[f"{layer}.weight"]), theirs.weights) for layer, theirs in made.linears.items())


@each_format
def test_the_base_on_disk_is_what_was_imported_and_names_no_other_tool(name, tmp_path):
    made = folder(tmp_path / "theirs", name, 64)
    expected = Imported(made.path)
    base = import_base(made.path, tmp_path / "base")
    again = checkpoint.load(tmp_path / "base")
    assert base.root == again.root
    assert again.digests() == {tensor: entry["digest"] for tensor, entry in again.manifest["tensors"].items()}
    assert plan(made.path) == again.outline() == expected.outline()
    config = json.loads((made.path / "config.json").read_text("utf-8"))
    stored = json.loads((tmp_path / "base" / "config.json").read_text("utf-8"))
    method = config.pop("quantization_config")["quant_method"]
    assert stored == {**config, "quantization_config": {"quant_method": "edgeqaf"}}
    assert again.config == config
    assert again.manifest["options"] == {"imported": method.replace("-", "_")}


def test_zeros_decide_the_grid_where_no_flag_claims_them(tmp_path):
    made = folder(tmp_path / "theirs", "awq", symmetric=True)
    made.settings(zero_point=True)
    assert {grid for grid, _ in plan(made.path).values()} == {"q4_0", "float32"}


def test_awq_without_zero_points_may_leave_them_out(tmp_path):
    made = folder(tmp_path / "theirs", "awq", symmetric=True)
    made.arrays({f"{layer}.qzeros": None for layer in made.linears})
    found = Imported(made.path)
    assert all(same(decode(found[f"{layer}.weight"]), theirs.weights) for layer, theirs in made.linears.items())


def test_bfloat16_and_float32_scales_that_float16_holds_are_taken(tmp_path):
    for dtype in (ml_dtypes.bfloat16, np.float32):
        made = folder(tmp_path / np.dtype(dtype).name, "compressed-tensors", symmetric=True)
        scale = made[f"{UP}.weight_scale"].astype(ml_dtypes.bfloat16).astype(dtype)
        made.arrays({f"{UP}.weight_scale": scale})
        layer = made.linears[UP]
        expected = Linear(layer.codes, layer.zero, scale, layer.group)
        assert same(decode(Imported(made.path)[f"{UP}.weight"]), expected.weights)


def test_layers_that_were_left_in_float_stay_so(tmp_path):
    made = folder(tmp_path / "theirs", "gptq", symmetric=True)
    weights = np.random.default_rng(1).normal(size=made.linears[UP].codes.shape).astype(np.float16)
    made.arrays({f"{UP}.{part}": None for part in ("qweight", "qzeros", "scales", "g_idx")} | {f"{UP}.weight": weights})
    found = Imported(made.path)
    assert found.outline()[f"{UP}.weight"] == ("float32", weights.shape)
    assert same(found[f"{UP}.weight"], weights.astype(np.float32))


def test_a_quantized_head_is_taken_over(tmp_path):
    made = folder(tmp_path / "theirs", "gptq", symmetric=True)
    head = linear(np.random.default_rng(2), (96, HIDDEN), symmetric=True)
    parts = {f"lm_head.{part}": array for part, array in FORMATS["gptq"].write(head).items()}
    made.arrays({"lm_head.weight": None, **parts})
    assert same(decode(Imported(made.path)["lm_head.weight"]), head.weights)


def test_act_order_that_orders_nothing_is_no_act_order(tmp_path):
    whole = folder(tmp_path / "whole rows", "gptq", -1)
    whole.settings(desc_act=True)
    grouped = folder(tmp_path / "in order", "gptq", 32)
    grouped.settings(desc_act=True)
    for made in (whole, grouped):
        found = Imported(made.path)
        assert same(decode(found[f"{UP}.weight"]), made.linears[UP].weights)


def test_old_files_without_the_order_are_in_order(tmp_path):
    made = folder(tmp_path / "theirs", "gptq", 32)
    made.arrays({f"{layer}.g_idx": None for layer in made.linears})
    assert same(decode(Imported(made.path)[f"{UP}.weight"]), made.linears[UP].weights)


def test_a_bias_of_zeros_that_the_model_has_no_place_for_is_left_out(tmp_path):
    made = folder(tmp_path / "theirs", "gptq", symmetric=True)
    expected = set(Imported(made.path))
    made.arrays({f"{layer}.bias": np.zeros(len(theirs.codes), np.float16) for layer, theirs in made.linears.items()})
    found = Imported(made.path)
    assert set(found) == set(found.outline()) == expected
    with pytest.raises(KeyError):
        found[f"{UP}.bias"]
    made.config(mlp_bias=True)
    assert set(Imported(made.path)) - expected == {f"model.layers.0.mlp.{p}_proj.bias" for p in ("gate", "up", "down")}


@pytest.mark.parametrize("flags", [{}, {"attention_bias": True}, {"mlp_bias": True}], ids=str)
@pytest.mark.parametrize("architecture", LINEARS)
def test_which_layers_have_a_bias_is_what_transformers_builds(architecture, flags):
    known = CONFIG_MAPPING[architecture]().to_dict()
    config = CONFIG | {"model_type": architecture, "pad_token_id": 0} | {k: v for k, v in flags.items() if k in known}
    parameters = dict(skeleton(config).named_parameters())
    layers = [name.removesuffix(".weight") for name in parameters if is_linear(architecture, name)]
    assert len(layers) == len(LINEARS[architecture])
    for layer in [*layers, "lm_head"]:
        assert has_bias(config, layer) == (f"{layer}.bias" in parameters), layer


def test_shards_are_read_as_the_one_file_they_were(tmp_path):
    made = folder(tmp_path / "theirs", "gptq", 64)
    expected = plan(made.path)
    arrays = load_file(made.path / "model.safetensors")
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(arrays))}  # parts of a layer apart
    for shard in set(weight_map.values()):
        save_file({name: arrays[name] for name in arrays if weight_map[name] == shard}, made.path / shard)
    (made.path / "model.safetensors").unlink()
    (made.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    assert plan(made.path) == expected
    assert same(decode(Imported(made.path)[f"{UP}.weight"]), made.linears[UP].weights)


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, Linear]:
    """Any codes, zeros and scales of any group, in any format."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    blocks, group = draw(st.integers(1, 6)), draw(st.sampled_from([32, 64, 128, -1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = linear(rng, (8 * draw(st.integers(1, 4)), 32 * blocks), group, lowest=FORMATS[name].lowest)
    scale = rng.integers(0, 0x7C00, made.scale.shape) | rng.integers(0, 2, made.scale.shape) << 15
    return name, Linear(made.codes, made.zero, scale.astype(np.uint16).view(np.float16), group)


@given(layers())
@settings(max_examples=60, deadline=None)
def test_any_layer_comes_through_unchanged(tmp_path_factory, drawn):
    name, theirs = drawn
    path = tmp_path_factory.mktemp("layer")
    save_file({f"x.{part}": a for part, a in FORMATS[name].write(theirs).items()}, path / "model.safetensors")
    config = FORMATS[name].settings(theirs.group, False)
    importer = plugins.find("importers", name.removesuffix("_v2"))(config)
    found = importer.layer(Arrays(Shards(Path(path)), "x"))
    assert found.shape == theirs.codes.shape
    assert np.array_equal(found.codes(), theirs.codes)
    assert np.array_equal(found.zero, theirs.zero)
    assert np.array_equal(found.scale().view(np.uint16), theirs.scale.view(np.uint16))
    assert found.codes().dtype == found.zero.dtype == np.uint8
