"""What a file states and what config.json says are one and the same, both ways; what llama.cpp lacks is refused."""

import ast
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from family_models import CASES, CHECKOUT, SMALL, YARN
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from edgeqaf.checkpoint import QModel
from edgeqaf.digest import merkle_root, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.modeling import skeleton
from edgeqaf.qtensor import QTensor
from edgeqaf.report import compare_bits
from edgeqaf.shards import Shards
from edgeqaf.source import GEMMAS, LINEARS, FloatModel, is_tied
from exporters.gguf import exporter, families
from exporters.gguf.artifact import SIZES
from exporters.gguf.container import Type, Value, string, uint32
from exporters.gguf.places import Place
from exporters.gguf.reader import parse

LIGHT = {name: case for name, case in CASES.items() if "27B" not in name}


# ---- discovery


def test_what_can_be_quantized_has_a_family_and_the_other_way_round() -> None:
    served = [kind for name in families.names() for kind in families.named(name).model_types]
    assert sorted(served) == sorted(LINEARS)


def test_a_family_is_known_by_its_file_and_stands_alone() -> None:
    for name in families.names():
        assert families.named(name).architecture == name
        file = CHECKOUT / "exporters" / "gguf" / "families" / f"{name}.py"
        imported = [n.module for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)]
        assert not [module for module in imported if module and module.startswith("exporters.gguf.families")]


def test_every_architecture_is_tried() -> None:
    tried = {families.of_config(case.config()).architecture for case in CASES.values()}
    assert tried == set(families.names())


# ---- both ways


@pytest.mark.parametrize("name", CASES)
def test_the_places_are_the_parameters_of_transformers_model(name: str) -> None:
    config = CASES[name].config()
    family, tied = families.of_config(config), is_tied(config)
    places = {p.logical: p.shape for p in family.places(family.dimensions(config), tied=tied)}
    theirs = {n: tuple(p.shape) for n, p in skeleton(config).named_parameters() if not (tied and n == "lm_head.weight")}
    assert places == theirs


@pytest.mark.parametrize("name", CASES)
def test_names_in_the_file_are_gguf_pys(name: str) -> None:
    config = CASES[name].config()
    family = families.of_config(config)
    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == family.architecture)
    d = family.dimensions(config)
    names = gguf.get_tensor_name_map(architecture, d.layers)
    for place in family.places(d, tied=is_tied(config)):
        assert names.get_name(place.logical, try_suffixes=(".weight", ".bias")) == place.stored


@pytest.mark.parametrize("name", CASES)
def test_keys_of_the_metadata_are_gguf_pys(name: str) -> None:
    config = CASES[name].config()
    family = families.of_config(config)
    known = {
        v.replace("{arch}", family.architecture)
        for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for v in vars(group).values()
        if isinstance(v, str)
    }
    assert family.metadata(config).keys() <= known


@pytest.mark.parametrize("name", CASES)
def test_a_files_metadata_gives_a_config_that_states_the_same(name: str) -> None:
    config = CASES[name].config()
    family = families.of_config(config)
    stated, factors = family.metadata(config), family.factors(config)
    again = family.config(stated, factors) | {"tie_word_embeddings": is_tied(config)}
    assert family.metadata(again) == stated
    assert {k: v.tobytes() for k, v in family.factors(again).items()} == {k: v.tobytes() for k, v in factors.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_files_metadata_gives_a_config_whose_model_has_the_same_logits(name: str, make: Callable[[str], Any]) -> None:
    made = make(name)
    family = families.of_config(made.config)
    contents = parse(made.file, SIZES)
    factors = {n: contents.raw(i).view("<f4") for n, i in contents.tensors.items() if n in family.factor_names}
    again = family.config(contents.metadata, factors) | {"tie_word_embeddings": is_tied(made.config)}
    assert not compare_bits(made.logits(made.config), made.logits(again)).any()


@pytest.mark.parametrize("name", CASES)
def test_a_file_reads_back_as_the_model(name: str, make: Callable[[str], Any]) -> None:
    made = make(name)
    found = {n: tensor_digest(n, stored.tensor) for n, stored in exporter.read_back(made.file).items()}
    assert merkle_root(found) == merkle_root(made.model.digests())
    assert exporter.plan(made.model) == made.file.stat().st_size


def test_what_a_foreign_file_leaves_out_is_llama_cpps_default() -> None:
    stated = {
        "llama.block_count": uint32(2), "llama.embedding_length": uint32(64), "llama.feed_forward_length": uint32(96),
        "llama.attention.head_count": uint32(4), "llama.context_length": uint32(128),
        "llama.attention.layer_norm_rms_epsilon": Value(Type.FLOAT32, float(np.float32(1e-6))),
        "tokenizer.ggml.tokens": Value(Type.ARRAY, [b"a"] * 11, Type.STRING),
    }  # fmt: skip
    found = families.named("llama").config(stated, {})
    expected = {
        "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 11, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 128,
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert "rope_scaling" not in found


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("original", [8192, 64])
def test_llama_3s_rule_is_recognized_by_its_factors(factor: float, original: int) -> None:
    family = families.named("llama")
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": original}  # fmt: skip
    config = {**SMALL, "model_type": "llama", "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
    factors = family.factors(config | {"rope_scaling": scaling})
    assert family.config(family.metadata(config), factors)["rope_scaling"] == scaling
    (values,) = factors.values()
    off = {name: values * np.float32(1.001) for name in factors}
    with pytest.raises(Refused, match="32 factors of rope_freqs"):
        family.config(family.metadata(config), off)


# ---- Gemma's norms

FLOATS = nps.arrays(np.float32, 8, elements=st.floats(-8, 8, width=32))


@given(FLOATS)
def test_one_plus_a_norm_comes_back_exactly_or_is_refused(values: np.ndarray) -> None:
    place = Place("model.norm.weight", "output_norm.weight", (8,), added=1.0)
    dropped = (np.float32(1) + values) - np.float32(1)
    assert ((np.float32(1) + dropped) == (np.float32(1) + values)).all()  # Gemma itself sees no difference
    assert place.unshifted(place.to_file(dropped)).tobytes() == dropped.tobytes()
    if dropped.tobytes() == values.tobytes():
        assert place.unshifted(place.to_file(values)).tobytes() == values.tobytes()
    else:
        with pytest.raises(Refused, match=r"model\.norm\.weight: GGUF stores 1 \+ its values"):
            place.to_file(values)


@pytest.mark.parametrize("name", ["gemma 2 2B", "gemma 3 1B"])
def test_a_gemma_is_read_without_what_one_plus_its_norms_rounds_off(name: str, make: Callable[[str], Any]) -> None:
    made = make(name)
    assert made.config["model_type"] in GEMMAS
    source, stored = FloatModel(made.model.folder), Shards(made.model.folder)
    for norm in (n for n in source if n.endswith("norm.weight")):
        raw = stored[norm].astype(np.float32)
        assert ((1 + raw) == (1 + source[norm])).all()
        assert (raw != source[norm]).any()


# ---- refused

TO_REFUSE: list[tuple[str, dict[str, Any], str]] = [
    ("llama 3 8B", {"attention_bias": True}, "attention_bias is True"),
    ("llama 3 8B", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
    ("mistral v0.3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("mistral v0.1", {"sliding_window": 0}, "sliding_window is 0, not a positive"),
    ("qwen2.5 0.5B", {"use_mrope": True}, "use_mrope is True"),
    ("qwen2.5 0.5B", {"head_dim": 32}, "4 heads of 32 are not the hidden size 64"),
    ("qwen3 1.7B", {"attention_bias": True}, "attention_bias is True"),
    ("gemma 2 2B", {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar is 224; llama.cpp takes 32"),
    ("gemma 2 27B", {"query_pre_attn_scalar": 8}, "query_pre_attn_scalar is 8; llama.cpp takes 16"),
    ("gemma 2 2B", {"final_logit_softcapping": None}, "final_logit_softcapping is None, not a positive"),
    ("gemma 2 2B", {"attn_logit_softcapping": None}, "attn_logit_softcapping is None, not a positive"),
    ("gemma 2 2B", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    ("gemma 2 2B", {"layer_types": ["full_attention"] * 2}, "layer_types differ .* at layer 0: .* every 2. layer"),
    ("gemma 2 2B", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ("gemma 2 2B", {"sliding_window": None}, "sliding_window is null"),
    ("gemma 3 1B", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma 3 1B", {"sliding_window_pattern": 4}, "sliding_window_pattern is 4; llama.cpp takes 6"),
    ("gemma 3 1B", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("gemma 3 1B", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "says 'type' for rope_type"),
    ("gemma 3 1B", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "rope type 'linear'"),
    ("phi 4 mini", {"partial_rotary_factor": 0.5}, "long_factor is not a list of 4 numbers"),
    ("phi 4 mini", {"partial_rotary_factor": 1.5}, "24 of a head's 16 dimensions"),
    ("phi 4 mini", {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 5 + ["2"]}}, "long_factor is '2'"),
    ("phi 4 mini", {"mlp_bias": True}, "mlp_bias is True"),
    ("phi 4 mini", {"head_dim": 32}, "4 heads of 32 are not the hidden size 64"),
    ("qwen2.5 yarn", {"rope_scaling": YARN | {"beta_fast": 16}}, "yarn with beta_fast 16; .* supports 32"),
    ("qwen2.5 yarn", {"rope_scaling": YARN | {"attention_factor": 1.0}}, "yarn with attention_factor 1.0"),
    ("qwen2.5 yarn", {"rope_scaling": YARN | {"factor": None}}, "factor is None, not a positive"),
    ("gemma 2 2B", {"rope_scaling": YARN}, "rope type 'yarn'"),
    ("smollm2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
]


@pytest.mark.parametrize(("name", "changes", "said"), TO_REFUSE)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], said: str, make: Callable[[str], Any]
) -> None:
    made = make(name)
    with pytest.raises(Refused, match=said):
        exporter.plan(QModel(made.config | changes, made.model.tensors, made.model.folder))


HALF = Value(Type.FLOAT32, 2.0)


@pytest.mark.parametrize(
    ("name", "stated", "said"),
    [
        ("qwen2 7B", {"qwen2.rope.dimension_count": uint32(8)}, "rope.dimension_count is 8, not 16"),
        ("qwen2 7B", {"qwen2.attention.value_length": uint32(8)}, "value_length is not the key length 16"),
        ("qwen2 7B", {"qwen2.rope.scaling.type": string("longrope")}, "rope.scaling.type is 'longrope'"),
        ("qwen2.5 yarn", {"qwen2.rope.scaling.yarn_beta_fast": uint32(16)}, "scaling.yarn_beta_fast is there"),
        ("qwen2 7B", {"qwen2.rope.scaling.type": uint32(1)}, "rope.scaling.type is not a string"),
        ("phi 3 mini 4k", {"phi3.rope.scaling.factor": HALF}, "rope.scaling.type is 'linear'"),
        ("phi 4 mini", {"phi3.rope.scaling.type": string("longrope"), "phi3.rope.scaling.factor": HALF}, "beside type"),
        ("qwen2 7B", {"qwen2.block_count": string("2")}, "block_count is missing or not a positive integer"),
        ("qwen2 7B", {"qwen2.rope.freq_base": uint32(2)}, "freq_base is missing or not a positive float32"),
    ],
)
def test_metadata_that_transformers_would_compute_otherwise_is_refused(
    name: str, stated: dict[str, Value], said: str
) -> None:
    config = CASES[name].config()
    family = families.of_config(config)
    with pytest.raises(Refused, match=said):
        family.config(family.metadata(config) | stated, {})


def test_a_norm_on_a_grid_is_refused() -> None:
    from edgeqaf import plugins
    from edgeqaf.parts import split

    grid = plugins.find("grids", "q4_0")
    q = QTensor(grid, np.zeros((1, 32), np.int8), np.ones((1, 1), np.float32))
    with pytest.raises(Refused, match=r"model\.norm\.weight is on a grid"):
        Place("model.norm.weight", "output_norm.weight", (1, 32), added=1.0).to_file(split(q))


@pytest.mark.parametrize(
    ("name", "limit"), [("mistral v0.1", 24), ("qwen2 windows", 24), ("phi 3 mini 4k", 24), ("mistral v0.3", 128)]
)
def test_a_window_that_llama_cpp_leaves_out_ends_the_context(name: str, limit: int) -> None:
    config = CASES[name].config()
    family = families.of_config(config)
    assert family.metadata(config)[f"{family.architecture}.context_length"].data == limit
