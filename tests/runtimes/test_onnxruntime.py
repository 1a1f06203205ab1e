"""The ONNX Runtime leaf against the real library: every stored weight through every kernel, exactly."""

from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import (
    EVERYDAY,
    EXPORTER,
    GRIDS,
    LINEAR,
    OPTIONS,
    RUNTIME,
    asked,
    assert_every_weight_comes_out,
    exported,
    extreme,
    quantized,
)
from onnx_models import WAYS

from edgeqaf.checkpoint import QModel
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Configuration
from edgeqaf.qtensor import decode
from edgeqaf.report import compare_bits
from runtime_tests.onnx import worker
from runtime_tests.onnx.ways import all_ways

available = RUNTIME.availability(OPTIONS)
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)


@pytest.fixture(params=EVERYDAY, ids=lambda c: c.name)
def configuration(request: pytest.FixtureRequest) -> Configuration:
    return request.param


@pytest.fixture(scope="module", params=GRIDS)
def tiny(request: pytest.FixtureRequest, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Fourteen small linears on any grid that the format carries."""
    folder = tmp_path_factory.mktemp("dist")
    return exported(quantized(tiny_float_model, request.param), folder / EXPORTER.filename)


def test_availability_names_the_version():
    import onnxruntime

    assert available.version == onnxruntime.__version__


def test_every_weight_is_decoded_and_multiplied_exactly(tiny: Artifact, configuration: Configuration):
    with RUNTIME.open(tiny, configuration, OPTIONS) as session:
        for _, stored, q in tiny.quantized():
            assert compare_bits(decode(q), session.weights(stored)).sum() == 0
            assert_every_weight_comes_out(session, stored, configuration.int8_activations)


def test_a_tensor_is_decoded_as_the_graph_is_written(tiny: Artifact, configuration: Configuration):
    """Optimized, it would be decoded while it is loaded, on the CPU, whoever is to run it."""
    settings = []

    def load(model: str | bytes, setting: worker.Setting) -> worker.Loaded:
        settings.append(setting)
        return worker.load(model, setting)

    (way,) = (way for way in all_ways() if way.configuration == configuration)
    session = way.session(tiny, load, threads=1)
    for _, stored, q in tiny.quantized():
        assert session.weights(stored, slice(3, 5)).shape == (2, q.shape[1])
    assert {setting["level"] for setting in settings} == {"off"}


@pytest.mark.parametrize("grid", GRIDS)
def test_extreme_parameters_are_exact_too(
    grid: str, configuration: Configuration, tiny_float_model: Path, tmp_path: Path
):
    model = quantized(tiny_float_model, grid)
    q = extreme(grid, model.tensors[LINEAR].shape)
    artifact = exported(QModel(model.config, {**model.tensors, LINEAR: q}, model.folder), tmp_path / "onnx")
    stored = artifact.tensors[LINEAR]
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        assert compare_bits(decode(q), session.weights(stored)).sum() == 0
        assert_every_weight_comes_out(session, stored, configuration.int8_activations)


SOME = [name for name in ("q4_0", "q4_1", "q8_0", "q3_0", "q2_0", "uint4", "uint2") if name in GRIDS]


@pytest.mark.parametrize(
    ("grid", "form", "activations"), [way for way in WAYS if way[0] in SOME and way[1:] != ("qdq", "float")]
)
def test_every_form_decodes_and_multiplies_exactly(
    form: str, activations: str, grid: str, configuration: Configuration, tiny_float_model: Path, tmp_path: Path
):
    """Extreme parameters too; probes go past the rounding of activations in the graph."""
    model = quantized(tiny_float_model, grid)
    q = extreme(grid, model.tensors[LINEAR].shape)
    model = QModel(model.config, {**model.tensors, LINEAR: q}, model.folder)
    artifact = exported(asked(model, form, activations), tmp_path / "onnx")
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        for _, stored, q in list(artifact.quantized())[:7]:
            assert compare_bits(decode(q), session.weights(stored)).sum() == 0
            assert_every_weight_comes_out(session, stored, configuration.int8_activations)


@pytest.mark.parametrize("grid", SOME)
@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_ends_are_looked_up_and_multiplied_exactly(
    tied: bool, form: str, grid: str, tiny_float_model: Path, tmp_path: Path
):
    """Every row of the embedding, and the head; a tied one by two roads over the same bytes."""
    model = quantized(tiny_float_model, grid)
    shape = model.tensors["model.embed_tokens.weight"].shape
    ends = {"model.embed_tokens.weight": extreme(grid, shape)}
    config = model.config
    if not tied:
        ends["lm_head.weight"] = extreme(grid, shape)
        config = {**config, "tie_word_embeddings": False}
    artifact = exported(asked(QModel(config, {**model.tensors, **ends}, model.folder), form), tmp_path / "onnx")
    for configuration in EVERYDAY[:2]:
        with RUNTIME.open(artifact, configuration, OPTIONS) as session:
            for name, q in ends.items():
                assert compare_bits(decode(q), session.weights(artifact.tensors[name])).sum() == 0
            assert_every_weight_comes_out(session, artifact.tensors[max(ends) if tied else "lm_head.weight"], False)
            if not tied:
                with pytest.raises(RuntimeAbsent, match=r"embed_tokens\.weight is looked up, and never multiplied"):
                    session.linear(artifact.tensors["model.embed_tokens.weight"], np.zeros((1, 64), np.float32))
