"""R3 on real models in the real ONNX Runtime: exact where all is sound, and never silent where it is not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import BASE, EVERYDAY, EXPORTER, OPTIONS, RUNTIME, asked, exported, quantized
from test_onnx_kernels import known_here

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions
from edgeqaf.qtensor import QTensor
from edgeqaf.report import Check, Verdict, compare_bits
from runtime_tests import layers
from runtime_tests.job import Job
from runtime_tests.onnx import replaying, tap, worker
from runtime_tests.onnx.emulate import paths
from runtime_tests.onnx.session import LEVEL

available = RUNTIME.availability(OPTIONS)
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)
PROMPTS = ([5, 900, 77, 13, 2041, 300, 8, 8], [4000, 1, 1700], [12])
ROWS = sum(len(prompt) + layers.MORE for prompt in PROMPTS)
GRIDS = ("q4_0", "q4_1", "q8_0", "uint4", "q2_0")
EXACT = [c for c in RUNTIME.configurations if c.program]


@pytest.fixture(params=EVERYDAY, ids=lambda c: c.name)
def configuration(request: pytest.FixtureRequest) -> Configuration:
    return request.param


@pytest.fixture(scope="module", params=GRIDS)
def tiny(request: pytest.FixtureRequest, tiny_float_model: Path) -> QModel:
    return quantized(tiny_float_model, request.param)


@pytest.fixture(scope="module")
def artifact(tiny: QModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tiny, tmp_path_factory.mktemp("dist") / EXPORTER.filename)


def third_rung(
    artifact: Artifact, configuration: Configuration, expected: Mapping[str, QTensor] | None = None, threads: int = 1
) -> Check:
    own = {name: q for name, _, q in artifact.quantized()}
    options = replace(OPTIONS, threads=threads)
    job = Job("onnxruntime", configuration, artifact, expected or own, options, PROMPTS)
    with RUNTIME.open(artifact, configuration, options) as session:
        (found,) = layers.check(job, session)
    return found


def assert_exact(found: Check, artifact: Artifact) -> None:
    matrices = [q for _, _, q in artifact.quantized()]
    assert (found.rung, found.verdict, found.first) == ("R3", Verdict.EXACT, None)
    assert found.tensors == len(matrices)
    assert found.compared == ROWS * sum(q.shape[0] for q in matrices)


@known_here
@pytest.mark.parametrize("threads", [1, 2])
def test_every_linear_of_a_sound_model_is_exact(artifact: Artifact, configuration: Configuration, threads: int):
    found = third_rung(artifact, configuration, threads=threads)
    assert_exact(found, artifact)
    assert ("8-bit activations" in found.detail) == configuration.int8_activations


@known_here
@pytest.mark.parametrize("grid", ["q4_0", "q4_1", "q8_0"])
def test_every_linear_of_the_demo_model_is_exact(grid: str, configuration: Configuration, tmp_path: Path):
    artifact = exported(quantized(BASE, grid), tmp_path / "onnx")
    assert_exact(third_rung(artifact, configuration), artifact)


@known_here
@pytest.mark.parametrize(
    ("form", "activations", "level"),
    [("matmulnbits", "float", 1), ("matmulnbits", "float", 4), ("matmulnbits", "int8", 1), ("qdq", "int8", 1)],
)
@pytest.mark.parametrize("grid", ["q4_0", "q4_1"])
def test_every_form_is_exact(
    grid: str, form: str, activations: str, level: int, configuration: Configuration, tiny_float_model: Path,
    tmp_path: Path,
):  # fmt: skip
    """The operator keeps the level that the model gives it, and what rounds in the graph prevents fusing."""
    model = asked(quantized(tiny_float_model, grid), form, activations, level)
    artifact = exported(model, tmp_path / "onnx")
    found = third_rung(artifact, configuration)
    assert_exact(found, artifact)
    assert ("8-bit activations" in found.detail) == (level == 4)


@known_here
def test_quantized_ends_are_watched_too(configuration: Configuration, tiny_float_model: Path, tmp_path: Path):
    """An embedding is looked up and no product; as a tied head it is one."""
    model = quantized(tiny_float_model, "q4_0")
    quantize = plugins.find("quantizers", "absmax")
    end = "model.embed_tokens.weight"
    tensors = {**model.tensors, end: quantize(model.tensors[end], plugins.find("grids", "q8_0"))}
    artifact = exported(QModel(model.config, tensors, model.folder), tmp_path / "onnx")
    assert_exact(third_rung(artifact, configuration), artifact)


def test_an_unknown_path_is_named_and_held_to_the_envelope(
    artifact: Artifact, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paths, "PRODUCTS", ())
    monkeypatch.setattr(paths, "WITH_OFFSETS", ())
    found = third_rung(artifact, configuration)
    _, _, q = next(artifact.quantized())
    assert found.verdict is Verdict.BOUNDED
    assert f"{q.grid.name} [64, 96], 8 rows: unknown path, {2 * 8 * 64:,} held to an envelope" in found.detail


def test_an_unknown_path_does_not_hide_what_is_far_off(
    artifact: Artifact, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paths, "PRODUCTS", ())
    monkeypatch.setattr(paths, "WITH_OFFSETS", ())
    expected = {name: q for name, _, q in artifact.quantized()}
    name = "model.layers.1.mlp.up_proj.weight"
    expected[name] = expected[name].replace(scale=-2 * expected[name].scale)
    found = third_rung(artifact, configuration, expected)
    assert (found.verdict, found.wrong) == (Verdict.DIFFERENT, (name,))


@pytest.mark.parametrize("most", [1, 4 * 11 * 400])
def test_a_few_linears_at_a_time_are_as_good_as_all(
    artifact: Artifact, configuration: Configuration, most: int, monkeypatch: pytest.MonkeyPatch
):
    whole = third_rung(artifact, configuration)
    monkeypatch.setattr(replaying, "MOST", most)
    monkeypatch.setattr(replaying, "LARGE", 0)
    assert third_rung(artifact, configuration) == whole


@pytest.mark.parametrize("level", ["1", "4"])
def test_what_is_watched_is_still_fused(artifact: Artifact, level: str, tmp_path: Path):
    """Each linear's output is made by the fused kernel, or of a grid with a float zero added to what that made."""
    import onnx

    model = onnx.load(artifact.path / "model.onnx", load_external_data=False)
    chosen = list(tap.linears(model))
    watched = tap.tapped(model, chosen).SerializeToString()
    file = tmp_path / "optimized.onnx"
    data = sorted({e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"})
    beside = {"folder": str(artifact.path), "data": data, "optimized": str(file)}
    worker.load(watched, {**beside, "config": {LEVEL: level}})
    made = {v: n for n in onnx.load(file, load_external_data=False).graph.node for v in n.output}
    for linear in chosen:
        node = made[linear.y]
        assert "MatMulNBits" in {node.op_type, *(made[v].op_type for v in node.input if v in made)}
    assert len(chosen) == len(list(artifact.quantized())) == 14


def test_a_replay_is_the_chain_of_greedy_tokens(artifact: Artifact, configuration: Configuration):
    """Prompt in one piece, then by the cache: the argmax chain, and the prompt's logits those of `logits`."""
    expected = {name: q for name, _, q in artifact.quantized()}
    with RUNTIME.open(artifact, configuration, RuntimeOptions()) as session:
        found = session.replay(PROMPTS[0], 3, expected, None)
        whole = session.logits(PROMPTS[0])
    assert compare_bits(whole, found[: len(whole)]).sum() == 0
    assert found.shape == (len(PROMPTS[0]) + 3, whole.shape[1])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("configuration", EXACT, ids=lambda c: c.name)
def test_the_exact_profile_needs_no_third_rung(configuration: Configuration, artifact: Artifact):
    """Its program has one result as a whole."""
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        assert not hasattr(session, "replay")
