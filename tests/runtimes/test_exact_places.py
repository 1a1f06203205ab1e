"""The exact program in every place: the bits of PyTorch's run, but where a runtime is known to compute otherwise."""

from pathlib import Path

import numpy as np
import pytest

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.source import FloatModel
from exporters.onnx import exporter
from runtime_tests.interpreter import Program
from runtime_tests.onnx import places as known

QUICK = ("here", "1.24", "web")
OTHERWISE = {n: "it computes float64 in float32" for n in known.names() if n.startswith("openvino")}


@pytest.fixture(
    scope="module", params=["q4_0", *(pytest.param(n, marks=pytest.mark.slow) for n in ("q4_1", "q8_0", "uint4"))]
)
def folder(request: pytest.FixtureRequest, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, grid = FloatModel(tiny_float_model), plugins.find("grids", request.param)
    quantize = plugins.find("quantizers", "absmax")
    tensors = {n: quantize(source[n], grid) if source.is_linear(n) else source[n] for n in source}
    asked = ExportOptions(onnx=OnnxOptions("exact", activations="int16"))
    model = QModel(source.config, tensors, tiny_float_model, asked=asked)
    return exporter.export(model, tmp_path_factory.mktemp("exact") / "onnx")


def feeds(program: Program) -> dict[str, np.ndarray]:
    """Two prompts, one of them padded, after nothing."""
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in program.graph.input}
    mask = np.ones((2, 9), np.int64)
    mask[1, :4] = 0
    tokens = np.random.default_rng(0).integers(0, 40, mask.shape)
    cache = {n: np.zeros((2, s[1], 0, s[3]), np.float32) for n, s in shapes.items() if n.startswith("past_key_values")}
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0), **cache}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in known.names()])
def test_every_place_gives_the_same_bits(name: str, folder: Path, places: Path):
    try:
        place = known.find(name, places)
    except RuntimeAbsent as absent:
        pytest.skip(f"{absent}: {absent.remedy}")
    program = Program(folder / "model.onnx")
    given = feeds(program)
    expected = {n: value.numpy() for n, value in program(given).items()}
    found = known.run(place, folder / "model.onnx", given)
    wrong = [n for n in expected if not np.array_equal(found[n].view(np.uint32), expected[n].view(np.uint32))]
    assert ("logits" in wrong) == (name in OTHERWISE), (wrong, OTHERWISE.get(name))
    assert name in OTHERWISE or wrong == []
