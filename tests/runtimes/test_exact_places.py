"""The exact program everywhere: weights and products as they must be, and the bits of PyTorch's run.

But where a runtime is known to compute otherwise.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import GRIDS, exported, quantized

from edgeqaf import plugins, witness
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.exportoptions import ACTIVATIONS, ExportOptions, OnnxOptions
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.report import Verdict
from edgeqaf.source import FloatModel
from exporters.onnx import exporter
from runtime_tests import ladder
from runtime_tests.interpreter import Program
from runtime_tests.job import Job
from runtime_tests.onnx import places as known

QUICK = ("here", "1.24", "web")
OTHERWISE = {
    n: "it rounds a * b + c once, and takes (a + b) - b for a" for n in known.names() if n.startswith("openvino")
}


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


@pytest.mark.parametrize("activations", ACTIVATIONS["exact"])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_weight_and_product_is_exact(grid: str, activations: str, tiny_float_model: Path, tmp_path: Path):
    """R1 and R2 in every configuration of this environment; no probe of the exact profile is left out."""
    asked = ExportOptions(onnx=OnnxOptions("exact", activations=activations))  # type: ignore[arg-type]
    artifact = exported(replace(quantized(tiny_float_model, grid), asked=asked), tmp_path / "onnx")
    expected = {name: q for name, _, q in artifact.quantized()}
    climbed, absent = [], []
    for job in ladder.jobs(artifact, expected, ["interpreter", "onnxruntime"], RuntimeOptions()):
        assert isinstance(job, Job)
        try:
            weights, kernels = ladder.climb(job).checks
        except RuntimeAbsent:
            absent.append(job.configuration.name)
            continue
        assert (weights.verdict, kernels.verdict) == (Verdict.EXACT, Verdict.EXACT), (weights, kernels)
        found, of = kernels.detail.split(" probe sums")[0].removeprefix("and ").split(" of ")
        assert found == of
        climbed.append(job.configuration)
    assert len(climbed) >= 3
    assert all(name.startswith("cuda") for name in absent)


def test_a_runtime_of_other_bits_is_found(tiny_float_model: Path, tmp_path: Path):
    """One logit in its last bit: a verifier that cannot fail proves nothing."""
    asked = ExportOptions(onnx=OnnxOptions("exact", activations="int16"))
    artifact = exported(replace(quantized(tiny_float_model, "q4_0"), asked=asked), tmp_path / "onnx")
    jobs = list(ladder.jobs(artifact, {n: q for n, _, q in artifact.quantized()}, ["onnxruntime"], RuntimeOptions()))
    asking = {"tokens": [[1, 5, 9], [7, 8]], "texts": witness.PROMPTS[:2]}
    sound = ladder.climb(replace(jobs[0], **asking)).logits
    other = [each.copy() for each in sound]
    other[1][1, 3] = np.nextafter(other[1][1, 3], np.float32(np.inf))
    for bits, verdict in ((sound, Verdict.EXACT), (other, Verdict.DIFFERENT)):
        found = ladder.climb(replace(jobs[1], **asking, bits=bits)).checks[-1]
        assert (found.rung, found.verdict, found.differing) == ("R4", verdict, int(verdict is Verdict.DIFFERENT))
    assert found.first is not None
    assert found.first.index == (4, 3)
    longer = ladder.climb(replace(jobs[1], tokens=[[1, 5, 9, 3], [7, 8]], texts=asking["texts"], bits=sound)).checks[-1]
    assert (longer.verdict, longer.detail) == (Verdict.DIFFERENT, "another shape")
