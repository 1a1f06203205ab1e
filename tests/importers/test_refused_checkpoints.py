"""What cannot be taken over as it is, is refused with the layer, the place and the number; never approximated."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from quantized_folder import FORMATS, HIDDEN, INNER, Folder, folder, linear, words

from edgeqaf.errors import Refused
from edgeqaf.imported import plan
from edgeqaf.prequantized import Imported
from edgeqaf.source import FloatModel

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def made(tmp_path: Any) -> Callable[..., Folder]:
    return lambda name, *args, **kwargs: folder(tmp_path / "theirs", name, *args, **kwargs)


def refused(made: Folder, says: str, remedy: str = "", *, read: str | None = None) -> None:
    """Refused when opened, so that a dry run says it too; or, with ``read``, when that tensor is read."""
    attempt = partial(plan, made.path) if read is None else partial(Imported(made.path).__getitem__, read)
    with pytest.raises(Refused) as caught:
        attempt()
    assert says in caught.value.cause
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "part"), [("gptq", "g_idx"), ("gptq_v2", "g_idx"), ("compressed-tensors", "weight_g_idx")]
)
def test_act_order_is_refused_with_the_first_input_out_of_order(name, part, made):
    theirs = made(name, 32)
    order = np.arange(HIDDEN, dtype=np.int32) // 32
    order[[37, 90]] = order[[90, 37]]
    theirs.arrays({f"{UP}.{part}": order})
    refused(theirs, f"{UP}.{part}[37] = 2, not 1: quantized in the order of activations", "desc_act: false")


def test_act_order_without_the_order_is_refused(made):
    theirs = made("gptq", 32)
    theirs.settings(desc_act=True)
    theirs.arrays({f"{UP}.g_idx": None})
    refused(theirs, f"{UP}.g_idx is not there")


def test_act_order_of_compressed_tensors_without_the_order_is_refused(made):
    theirs = made("compressed-tensors", 32)
    groups = json.loads((theirs.path / "config.json").read_text())["quantization_config"]["config_groups"]
    groups["group_0"]["weights"]["actorder"] = "group"
    theirs.settings(config_groups=groups)
    refused(theirs, "weight_g_idx is not there")
    groups["group_0"]["weights"]["actorder"] = "static"  # only quantizing went by it
    theirs.settings(config_groups=groups)
    assert plan(theirs.path)


@pytest.mark.parametrize(("bits", "highest"), [(4, 15), (8, 255)])
def test_a_zero_that_readers_of_gptq_disagree_on_is_refused(bits, highest, made):
    theirs = made("gptq", 32, symmetric=True, bits=bits)
    zero = theirs.linears[UP].zero.copy()
    zero[9, 3] = highest + 1
    theirs.arrays({f"{UP}.qzeros": words(zero.T - 1, bits, 1)})
    says = f"{UP}.qzeros: row 9, group 3 stores zero {highest} in the format gptq"
    refused(theirs, says + f", which keeps zeros minus one: some tools read it as {highest + 1}", "gptq_v2")


def test_zeros_as_v2_keeps_them_under_the_name_of_v1_contradict_a_symmetric_checkpoint(made):
    theirs = made("gptq_v2", 32, symmetric=True)
    theirs.settings(checkpoint_format="gptq")
    refused(theirs, "the zero of row 0, group 0 is 9, and quantization_config says sym: 8", "to gptq_v2")


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [("gptq", "qzeros", "sym"), ("awq", "qzeros", "zero_point: false"),
     ("compressed-tensors", "weight_zero_point", "symmetric")],
)  # fmt: skip
def test_one_zero_off_the_middle_contradicts_a_symmetric_checkpoint(name, array, says, made):
    theirs = made(name, 32, symmetric=True)
    layer = theirs.linears[UP]
    zero = layer.zero.copy()
    zero[5, 1] = 7
    changed = type(layer)(layer.codes, zero, layer.scale, layer.group)
    theirs.arrays({f"{UP}.{array}": FORMATS[name].write(changed)[array]})
    refused(theirs, f"{UP}: the zero of row 5, group 1 is 7, and quantization_config says {says}: 8")


def test_asymmetric_bytes_have_no_grid(made):
    theirs = made("gptq", 32, bits=8)
    refused(theirs, "of 8 bits, only symmetric codes have a grid (every zero 128)", "edgeqaf quantize FLOAT_MODEL")


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("gptq", {"bits": 3}, "bits is 3; imported: 4, 8"),
        ("gptq", {"bits": 2}, "bits is 2; imported: 4, 8"),
        ("gptq", {"bits": "4"}, "bits is '4'; imported: 4, 8"),
        ("gptq", {"bits": None}, "bits is None; imported: 4, 8"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; imported: 'gptq', 'gptq_v2'"),
        ("gptq", {"format": "bitblas"}, "format is 'bitblas'; imported: 'gptq', 'gptq_v2'"),
        ("gptq", {"is_marlin_format": True}, "is_marlin_format is True; imported: False"),
        ("gptq", {"group_size": 0}, "group_size is 0, not -1 or a number of inputs"),
        ("gptq", {"group_size": -32}, "group_size is -32, not -1 or a number of inputs"),
        ("gptq", {"group_size": None}, "group_size is None, not -1 or a number of inputs"),
        ("gptq", {"group_size": 64}, "scales is F16 [8, 128], not F16 or BF16 or F32 [4, 128]"),
        ("gptq", {"bits": 8}, "scales is F16 [8, 128], not F16 or BF16 or F32 [4, 128]"),
        ("gptq", {"sym": 1}, "sym is 1; imported: True, False"),
        ("awq", {"bits": 8}, "bits is 8; imported: 4"),
        ("awq", {"version": "gemv"}, "version is 'gemv', whose words hold the codes in another order; imported"),
        ("awq", {"version": "gemv_fast"}, "version is 'gemv_fast', whose"),
        ("awq", {"version": None, "format": "marlin"}, "format is 'marlin', whose"),
        ("awq", {"backend": "llm-awq"}, "backend is 'llm-awq', whose"),
        ("awq", {"zero_point": "no"}, "zero_point is 'no'; imported: True, False"),
        ("compressed-tensors", {"format": "int-quantized"}, "format is 'int-quantized'; imported: 'pack-quantized'"),
        ("compressed-tensors", {"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'; imported"),
        ("compressed-tensors", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is {'num_bits': 8}; imported"),
        ("compressed-tensors", {"sparsity_config": {"format": "sparse-24"}}, "sparsity_config is {'format'"),
        ("compressed-tensors", {"config_groups": {"W4A16": ["Linear"]}}, "config_groups holds no schemes of weights"),
        ("compressed-tensors", {"config_groups": None}, "config_groups holds no schemes of weights"),
        ("gptq", {"quant_method": "bitsandbytes"}, "has a quantization_config of quant_method 'bitsandbytes'"),
        ("gptq", {"quant_method": None}, "has a quantization_config of quant_method None"),
        ("gptq", {"quant_method": "gpt"}, "has a quantization_config of quant_method 'gpt'"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_read_is_refused_by_name_and_value(name, changes, says, made):
    theirs = made(name, 32)
    theirs.settings(**changes)
    refused(theirs, says)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_bits", 3, "num_bits is 3; imported: 4, 8"),
        ("type", "float", "type is 'float'; imported: 'int'"),
        ("strategy", "tensor", "strategy is 'tensor'; imported: 'group', 'channel'"),
        ("actorder", "some", "actorder is 'some'; imported: None"),
        ("group_size", None, "group_size is None"),
    ],
)
def test_a_scheme_of_weights_that_is_not_read_is_refused(key, value, says, made):
    theirs = made("compressed-tensors", 32)
    scheme = FORMATS["compressed-tensors"].settings(32, False)["config_groups"]["group_0"]
    scheme["weights"][key] = value
    theirs.settings(config_groups={"group_0": scheme})
    refused(theirs, says)


def test_quantized_activations_and_two_schemes_are_refused(made):
    theirs = made("compressed-tensors", 32)
    one, other = (FORMATS["compressed-tensors"].settings(g, False)["config_groups"]["group_0"] for g in (32, 64))
    theirs.settings(config_groups={"a": one, "b": other})
    refused(theirs, "config_groups store weights in two ways")
    theirs.settings(config_groups={"a": one | {"input_activations": {"num_bits": 8}}})
    refused(theirs, "input_activations is {'num_bits': 8}; imported: None")


@pytest.mark.parametrize("name", FORMATS)
def test_every_array_of_a_layer_must_be_whole(name, made):
    theirs = made(name, 32)
    for part, array in FORMATS[name].write(theirs.linears[UP]).items():
        stored = f"{UP}.{part}"
        short = np.ascontiguousarray(array[:-1])
        theirs.arrays({stored: short})
        refused(theirs, UP)
        theirs.arrays({stored: array.astype(np.float64 if array.dtype != np.int64 else np.int16)})
        refused(theirs, "F64" if array.dtype != np.int64 else "I16")
        if array.ndim == 2:
            theirs.arrays({stored: np.ascontiguousarray(array[:, :-1])})
            refused(theirs, UP)
            theirs.arrays({stored: array.reshape(-1)})
            refused(theirs, f"{stored}")
        if part != "g_idx":
            theirs.arrays({stored: None})
            refused(theirs, UP)
        theirs.arrays({stored: array})
    assert plan(theirs.path)


def test_truncated_zeros_are_refused_with_both_shapes(made):
    theirs = made("gptq", 32)
    theirs.arrays({f"{UP}.qzeros": np.ascontiguousarray(theirs[f"{UP}.qzeros"][:3])})
    refused(theirs, f"{UP}.qzeros is I32 [3, {INNER // 8}], not I32 [4, {INNER // 8}]", "damaged")


def test_a_shape_that_contradicts_the_packed_codes_is_refused(made):
    theirs = made("compressed-tensors", 32)
    for shape in ([INNER, HIDDEN + 32], [INNER - 1, HIDDEN], [HIDDEN, INNER], [0, 0], [INNER, -HIDDEN], [INNER, 2**62]):
        theirs.arrays({f"{UP}.weight_shape": np.array(shape, np.int64)})
        refused(theirs, f"{UP}.weight_packed has shape [{INNER}, {HIDDEN // 8}], too many or too few for {shape}")


@pytest.mark.parametrize("group", [16, 48])
def test_groups_that_no_blocks_make_up_are_refused(group, made):
    theirs = made("gptq", group)
    refused(theirs, f"rows of {INNER} in groups of {group} are not made of uint4's blocks of 32", "multiples of 32")


def test_rows_that_no_blocks_make_up_are_refused(made):
    theirs = made("gptq", -1)
    odd = linear(np.random.default_rng(0), (INNER, 80), -1, lowest=1)
    theirs.arrays({f"{UP}.{part}": array for part, array in FORMATS["gptq"].write(odd).items()})
    refused(theirs, f"{UP}.weight: rows of 80 in groups of 80 are not made of uint4's blocks of 32")


@pytest.mark.parametrize(
    ("dtype", "value", "says"),
    [
        (np.float32, 0.1, "is 0.1 (float32), no finite float16 value, as are 1 of 1024"),
        (ml_dtypes.bfloat16, 2.0**-30, "is 9.313226e-10 (bfloat16), no finite float16 value"),
        (ml_dtypes.bfloat16, 2.0**17, "is 131072.0 (bfloat16), no finite float16 value"),
        (np.float16, np.inf, "is inf (float16), no finite float16 value"),
        (np.float16, np.nan, "is nan (float16), no finite float16 value"),
    ],
)
def test_a_scale_that_float16_does_not_hold_is_refused_with_its_value(dtype, value, says, made):
    theirs = made("compressed-tensors", 32)
    scale = theirs[f"{UP}.weight_scale"].astype(ml_dtypes.bfloat16).astype(dtype)
    scale[17, 2] = value
    theirs.arrays({f"{UP}.weight_scale": scale})
    refused(theirs, f"{UP}.weight: the scale of row 17, group 2 {says}", "float16 scales", read=f"{UP}.weight")


def test_a_layer_stored_twice_is_refused(made):
    theirs = made("gptq", 32)
    theirs.arrays({f"{UP}.weight": np.zeros((INNER, HIDDEN), np.float16)})
    refused(theirs, f"{UP}.weight is quantized, and stored in float too")


def test_only_linear_weights_may_be_quantized(made):
    theirs = made("compressed-tensors", 32)
    table = FORMATS["compressed-tensors"].write(linear(np.random.default_rng(0), (96, HIDDEN)))
    theirs.arrays({f"model.embed_tokens.{part}": array for part, array in table.items()})
    theirs.arrays({"model.embed_tokens.weight": None})
    refused(theirs, "model.embed_tokens.weight is quantized, and no linear weight of a decoder layer")


def test_a_tied_head_with_integers_of_its_own_is_refused(made):
    theirs = made("gptq", 32)
    theirs.config(tie_word_embeddings=True)
    head = FORMATS["gptq"].write(linear(np.random.default_rng(2), (96, HIDDEN), lowest=1))
    theirs.arrays({"lm_head.weight": None} | {f"lm_head.{part}": array for part, array in head.items()})
    refused(theirs, "lm_head.weight is quantized though config.json ties it")


def test_a_bias_that_the_model_has_no_place_for_is_refused(made):
    theirs = made("gptq", 32)
    theirs.arrays({f"{UP}.bias": np.full(INNER, 0.5, np.float16)})
    refused(theirs, f"{UP}.bias is not zero, and this llama model has no such bias")


def test_integers_that_belong_to_no_layer_are_refused(made):
    theirs = made("gptq", 32)
    theirs.arrays({f"{UP}.perm": np.zeros(4, np.int32)})
    refused(theirs, f"{UP}.perm is I32, not a float type")


def test_a_missing_layer_is_refused(made):
    theirs = made("awq", 32)
    theirs.arrays({f"{UP}.{part}": None for part in ("qweight", "qzeros", "scales")})
    refused(theirs, f"no tensor {UP}.weight")


def test_a_float_checkpoint_that_names_a_quantizer_is_refused_with_the_key_to_delete(made):
    theirs = made("awq", 32)
    for layer, stored in theirs.linears.items():
        theirs.arrays({f"{layer}.{part}": None for part in ("qweight", "qzeros", "scales")})
        theirs.arrays({f"{layer}.weight": stored.weights})
    refused(theirs, "has a quantization_config", "delete that key")
    with pytest.raises(Refused, match="has a quantization_config"):
        FloatModel(theirs.path)
