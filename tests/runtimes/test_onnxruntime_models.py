"""Whole models in ONNX Runtime: their logits beside PyTorch's, their generation, their kernels."""

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import (
    BASE,
    EVERYDAY,
    EXPORTER,
    LINEAR,
    MODELS,
    OPTIONS,
    PROMPTS,
    RUNTIME,
    SHARED,
    asked,
    exported,
    fused,
    quantized,
)

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.protocols import Artifact, Configuration, Session
from edgeqaf.qtensor import QTensor
from edgeqaf.report import compare_bits
from runtime_tests import ladder

available = RUNTIME.availability(OPTIONS)
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)


@pytest.fixture(params=EVERYDAY, ids=lambda c: c.name)
def configuration(request: pytest.FixtureRequest) -> Configuration:
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def storyteller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(quantized(BASE, request.param), tmp_path_factory.mktemp("dist") / EXPORTER.filename)


@pytest.fixture
def session(storyteller: Artifact, configuration: Configuration) -> Iterator[Session]:
    with RUNTIME.open(storyteller, configuration, OPTIONS) as opened:
        yield opened


def test_float_tensors_come_back_as_they_are(session: Session, storyteller: Artifact):
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        stored = storyteller.tensors[name]
        assert compare_bits(stored.tensor, session.weights(stored)).sum() == 0


@pytest.mark.parametrize("configuration", [c for c in EVERYDAY if not c.int8_activations], indirect=True)
def test_argmax_is_that_of_pytorch(session: Session, storyteller: Artifact, configuration: Configuration):
    with plugins.find("runtimes", "torch_cpu").open(storyteller, None, OPTIONS) as reference:
        for prompt in PROMPTS:
            ids = session.encode(prompt)
            assert ids == reference.encode(prompt)
            ours, theirs = session.logits(ids), reference.logits(ids)
            assert ours.shape == theirs.shape
            assert ours.dtype == np.float32
            assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("level", ["1", "4"])
def test_the_whole_model_runs_by_fused_kernels(storyteller: Artifact, level: str, tmp_path: Path):
    """The sub-models that `linear` cuts out are fused; so is every linear of the model they come from."""
    assert fused(storyteller, level, "accuracy_level", tmp_path) == [int(level)] * len(list(storyteller.quantized()))


@pytest.mark.parametrize("grid", ["q3_0", "q2_0"])
def test_a_grid_of_few_bits_runs_as_its_twin_among_the_codes_of_q4_0(grid: str, tmp_path: Path):
    """Other code types, another opset, other kernels: the same weights, so the same bits where nothing is fused."""
    model = quantized(BASE, grid)
    q4_0 = plugins.find("grids", "q4_0")
    twins = {name: QTensor(q4_0, q.codes + np.int8(8 - q.grid.centre), q.scale) for name, q in model.quantized()}
    few = exported(model, tmp_path / "few")
    many = exported(QModel(model.config, {**model.tensors, **twins}, BASE), tmp_path / "many")
    with (
        RUNTIME.open(few, EVERYDAY[0], OPTIONS) as first,
        RUNTIME.open(many, EVERYDAY[0], OPTIONS) as second,
    ):
        ids = first.encode(PROMPTS[0])
        assert compare_bits(first.logits(ids), second.logits(ids)).sum() == 0
    for configuration in EVERYDAY[1:]:
        with RUNTIME.open(few, configuration, OPTIONS) as session:
            assert np.isfinite(session.logits(ids)).all()
    assert fused(few, "1", "bits", tmp_path) == [4 if grid == "q3_0" else 2] * len(twins)


def test_generation_is_the_argmax_chain_without_a_cache(session: Session):
    prompts = [session.encode(p) for p in PROMPTS]
    batched = list(session.generate(prompts, 12))
    for prompt, made in zip(prompts, batched, strict=True):
        chain = list(prompt)
        for _ in range(12):
            chain.append(int(session.logits(chain)[-1].argmax()))
        assert made == chain[len(prompt) :]
        assert next(session.generate([prompt], 12)) == made


def test_generation_stops_before_the_end_token(storyteller: Artifact, tmp_path: Path):
    """With the end token set to a word the story uses, the story ends there."""
    copy = Path(shutil.copytree(storyteller.path, tmp_path / "onnx"))
    configuration = EVERYDAY[1]
    with RUNTIME.open(storyteller, configuration, OPTIONS) as session:
        prompt = session.encode(PROMPTS[0])
        whole = next(session.generate([prompt], 8))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [4095, whole[5]]}))
    moved = Artifact("onnx", copy, EXPORTER.read_back(copy), copy)
    with RUNTIME.open(moved, configuration, OPTIONS) as session:
        assert next(session.generate([prompt], 8)) == whole[: whole.index(whole[5])]
        assert session.decode([0, *whole, 0]) == session.decode(whole) != ""


def test_artifact_travels_to_another_process(storyteller: Artifact):
    copy = pickle.loads(pickle.dumps(storyteller))
    assert np.array_equal(copy.tensors[LINEAR].tensor.codes, storyteller.tensors[LINEAR].tensor.codes)


def test_another_architecture_of_the_family_agrees_with_pytorch(tmp_path: Path):
    """Biases, a head of its own, scaled rope, three layers: what the demo model does not have."""
    import torch
    from safetensors.numpy import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 100, "max_position_embeddings": 256,
        "attention_bias": True, "mlp_bias": True, "rope_theta": 10000.0, "eos_token_id": 99,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32},
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig.from_dict(dict(config))).float()
    weights = {n: (torch.randn_like(p) * 0.2).numpy() for n, p in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((BASE / "tokenizer.json").read_bytes())
    artifact = exported(quantized(tmp_path, "q4_1"), tmp_path / "onnx")
    ids = np.random.default_rng(0).integers(0, 99, 60).tolist()
    with (
        plugins.find("runtimes", "torch_cpu").open(artifact, None, OPTIONS) as reference,
        RUNTIME.open(artifact, EVERYDAY[0], OPTIONS) as session,
    ):
        assert np.array_equal(session.logits(ids).argmax(-1), reference.logits(ids).argmax(-1))


def test_a_checkpoint_of_older_transformers_works(tmp_path: Path):
    """Config by transformers 4.41, head stored under its own name, tied."""
    folder = SHARED / "tinystories656k"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} model beside the checkout")
    artifact = exported(quantized(folder, "q4_0"), tmp_path / "onnx")
    with (
        plugins.find("runtimes", "torch_cpu").open(artifact, None, OPTIONS) as reference,
        RUNTIME.open(artifact, EVERYDAY[1], OPTIONS) as session,
    ):
        ids = session.encode(PROMPTS[0])
        assert np.array_equal(session.logits(ids).argmax(-1), reference.logits(ids).argmax(-1))


def ends_quantized(folder: Path, grid: str) -> QModel:
    model = quantized(folder, grid)
    name, kind = "model.embed_tokens.weight", plugins.find("grids", grid)
    q = plugins.find("quantizers", "absmax")(model.tensors[name], kind)
    return QModel(model.config, {**model.tensors, name: q}, model.folder)


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_a_model_with_quantized_ends_agrees_with_pytorch_and_decodes_no_matrix(form: str, tmp_path: Path):
    import onnx

    artifact = exported(asked(ends_quantized(BASE, "q4_0"), form), tmp_path / "onnx")
    with (
        plugins.find("runtimes", "torch_cpu").open(artifact, None, OPTIONS) as reference,
        RUNTIME.open(artifact, EVERYDAY[1], OPTIONS) as session,
    ):
        ids = session.encode(PROMPTS[0])
        assert np.array_equal(session.logits(ids).argmax(-1), reference.logits(ids).argmax(-1))
    assert fused(artifact, "1", "bits", tmp_path) == [4] * len(list(artifact.quantized()))
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    assert "DequantizeLinear" not in {node.op_type for node in nodes}


def test_the_accuracy_level_is_the_operators_own(tmp_path: Path):
    import onnx

    for level in range(5):
        artifact = exported(asked(quantized(BASE, "q4_0"), "matmulnbits", level=level), tmp_path / str(level))
        nodes = onnx.load(artifact.path / "model.onnx", load_external_data=False).graph.node
        found = [{a.name: a.i for a in n.attribute}["accuracy_level"] for n in nodes if n.op_type == "MatMulNBits"]
        assert found == [level] * len(list(artifact.quantized()))


def test_both_forms_give_the_same_logits(tmp_path: Path):
    """At level 1 ONNX Runtime makes of the one what the other is."""
    model = quantized(BASE, "q4_0")
    logits = []
    for form in ("qdq", "matmulnbits"):
        artifact = exported(asked(model, form), tmp_path / form)
        with RUNTIME.open(artifact, EVERYDAY[1], OPTIONS) as session:
            logits.append(session.logits(session.encode(PROMPTS[0])))
    assert compare_bits(*logits).sum() == 0


def test_a_model_that_does_not_load_keeps_what_its_matrices_showed(tiny_float_model: Path, tmp_path: Path):
    """An operator that this runtime lacks, as OpenVINO lacks Attention: R1 and R2 are climbed, R4 is refused."""
    import onnx

    artifact = exported(quantized(tiny_float_model, "q4_0"), tmp_path / "onnx")
    model = onnx.load(artifact.path / "model.onnx", load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("Unheard", ["logits"], ["more"], domain="elsewhere"))
    (artifact.path / "model.onnx").write_bytes(model.SerializeToString())
    expected = {name: q for name, _, q in artifact.quantized()}
    job = next(iter(ladder.jobs(artifact, expected, ["onnxruntime"], OPTIONS)))
    found = ladder.climb(replace(job, tokens=[[1, 5, 9]], texts=("a",)))
    assert [(c.rung, c.verdict.value) for c in found.checks] == [("R1", "exact"), ("R2", "exact"), ("R4", "refused")]
    assert "ONNX Runtime does not load" in found.checks[-1].detail
    assert found.logits == []
