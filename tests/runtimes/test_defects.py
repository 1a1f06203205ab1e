"""A verifier that cannot fail is worthless: every seeded defect is caught, and named to its tensor.

One artifact per format and grid holds thirteen defects, one in each of thirteen linear weights; the
fourteenth is sound. File, weights and kernels must each name the thirteen and no other.
"""

from pathlib import Path

import pytest
from defects import DEFECTS

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.protocols import Artifact, RuntimeOptions, fitting
from edgeqaf.qtensor import QTensor, check
from edgeqaf.quantize import quantize
from edgeqaf.report import Verdict
from runtime_tests import ladder

OPTIONS = RuntimeOptions()
CASES = [
    (name, grid, "qdq")
    for name in plugins.names("exporters")
    for grid in plugins.names("grids")
    if plugins.find("exporters", name).refuses(plugins.find("grids", grid)) is None
    and plugins.find("grids", grid).fits(64)  # the rows of the tiny model
]


CASES += [("onnx", grid, made) for name, grid, _ in CASES if name == "onnx" for made in ("matmulnbits", "exact")]
ASKED = {
    "qdq": OnnxOptions(), "matmulnbits": OnnxOptions(form="matmulnbits"),
    "exact": OnnxOptions("exact", activations="int16"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def seeded(
    request: pytest.FixtureRequest, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, QModel, dict[str, str]]:
    """(artifact with the defects, the true model, tensor name -> defect)."""
    format, grid, made = request.param
    folder = tmp_path_factory.mktemp(f"{format}-{grid}")
    base = quantize(tiny_float_model, folder / "base", grid, "rtn")
    names = [name for name, _ in base.quantized()]
    assert len(names) > len(DEFECTS)
    seeds = dict(zip(names, DEFECTS, strict=False))
    tensors = {name: base.tensors[name] for name in base.tensors}
    for name, defect in seeds.items():
        sound = tensors[name]
        assert isinstance(sound, QTensor)
        tensors[name] = check(defect(sound), name)
    exporter = plugins.find("exporters", format)
    path = folder / exporter.filename
    asked = ExportOptions(onnx=ASKED[made])
    exporter.export(QModel(base.config, tensors, base.folder, asked=asked), path)
    artifact = Artifact(format, path, exporter.read_back(path), base.folder)
    return artifact, base, {name: defect.__name__ for name, defect in seeds.items()}


def test_the_bench_is_large_enough() -> None:
    assert len({defect.__name__ for defect in DEFECTS}) >= 12


def test_file_rung_names_every_defect_and_nothing_else(seeded: tuple[Artifact, QModel, dict[str, str]]) -> None:
    artifact, base, defects = seeded
    found = ladder.check_file(artifact, base.digests())
    assert found.verdict is Verdict.DIFFERENT
    assert {name: defects.get(name) for name in found.wrong} == defects


def test_weights_and_kernels_name_every_defect(seeded: tuple[Artifact, QModel, dict[str, str]]) -> None:
    """In every configuration of every runtime that reads the format, and has kernels for the grid."""
    artifact, _, _ = seeded
    reached = climbers_that_name_every_defect(seeded, ladder.at_home(), OPTIONS)
    assert reached == {n for n in ladder.at_home() if fitting(plugins.find("runtimes", n), artifact)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seeded"),
    [
        (name, (plugins.find("runtimes", name).reads, grid, "qdq"))
        for name in plugins.names("runtimes") if name not in ladder.at_home()
        for grid in ("q4_0", "q4_1", "q8_0")
    ],
    indirect=["seeded"],
)  # fmt: skip
def test_weights_and_kernels_name_every_defect_elsewhere(
    name: str, seeded: tuple[Artifact, QModel, dict[str, str]], places: Path
) -> None:
    options = RuntimeOptions(places=places)
    if (absent := plugins.find("runtimes", name).availability(options)).version is None:
        pytest.skip(absent.reason)
    assert climbers_that_name_every_defect(seeded, [name], options) == {name}


def climbers_that_name_every_defect(
    seeded: tuple[Artifact, QModel, dict[str, str]], names: list[str], options: RuntimeOptions
) -> set[str]:
    """The runtimes that climbed; each of their rungs named the tensors with a defect and no other."""
    artifact, base, defects = seeded
    reached = set()
    for job in ladder.jobs(artifact, dict(base.quantized()), names, options):
        assert isinstance(job, ladder.Job), job
        try:
            weights, kernels = ladder.climb(job).checks
        except RuntimeAbsent:
            continue  # a layout this machine's kernels do not have; another configuration must reach the end
        reached.add(job.runtime)
        for rung in (weights, kernels):
            assert rung.verdict is Verdict.DIFFERENT
            assert {name: defects.get(name) for name in rung.wrong} == defects, (rung.rung, rung.subject)
            assert rung.first is not None
            assert rung.first.tensor == min(defects)
    return reached


def test_a_sound_artifact_passes(tiny_base: Path, tmp_path: Path) -> None:
    base = checkpoint.load(tiny_base)
    exporter = plugins.find("exporters", "gguf")
    exporter.export(base, tmp_path / exporter.filename)
    stored = exporter.read_back(tmp_path / exporter.filename)
    artifact = Artifact("gguf", tmp_path / exporter.filename, stored, base.folder)
    assert ladder.check_file(artifact, base.digests()).verdict is Verdict.EXACT
    for job in ladder.jobs(artifact, dict(base.quantized()), ["torch_cpu"], OPTIONS):
        assert isinstance(job, ladder.Job)
        assert [c.verdict for c in ladder.climb(job).checks] == [Verdict.EXACT, Verdict.EXACT]
