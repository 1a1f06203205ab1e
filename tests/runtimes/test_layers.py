"""R3 on real models in the real llama.cpp: exact where all is sound, and never silent where it is not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from defects import DEFECTS
from test_llama_cpp import LIB, OPTIONS, RUNTIME, available

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Configuration, Session
from edgeqaf.qtensor import QTensor, check
from edgeqaf.quantize import quantize
from edgeqaf.replay import Product, Replays
from edgeqaf.report import Check, Verdict, compare_bits
from runtime_tests import ladder, layers
from runtime_tests.ggml import kernels, tap
from runtime_tests.ggml.emulate.paths import PATHS
from runtime_tests.ggml.library import load
from runtime_tests.ggml.model import Model
from runtime_tests.job import Job

EXPORTER = plugins.find("exporters", "gguf")
GRIDS = ("q4_0", "q4_1", "q8_0")
PROMPTS = ([5, 900, 77, 13, 2041, 300, 8, 8], [4000, 1, 1700])
PLAIN = RUNTIME.configurations[0]
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)


@pytest.fixture(params=RUNTIME.configurations, ids=lambda c: c.name)
def configuration(request: pytest.FixtureRequest) -> Configuration:
    return request.param


@pytest.fixture(scope="module", params=GRIDS)
def base(request: pytest.FixtureRequest, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> QModel:
    """The tiny model on a grid, its embedding (and head) too."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return quantize(tiny_float_model, folder, request.param, "rtn", ends="q8_0")


@pytest.fixture(scope="module")
def artifact(base: QModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(base, tmp_path_factory.mktemp("dist"))


def exported(model: QModel, folder: Path) -> Artifact:
    EXPORTER.export(model, folder / EXPORTER.filename)
    path = folder / EXPORTER.filename
    return Artifact("gguf", path, EXPORTER.read_back(path), model.folder)


def job(artifact: Artifact, configuration: Configuration, expected: Mapping[str, QTensor] | None = None) -> Job:
    own = {name: q for name, _, q in artifact.quantized()}
    return Job("llama_cpp", configuration, artifact, expected or own, OPTIONS, PROMPTS)


def third_rung(job: Job) -> Check:
    with RUNTIME.open(job.artifact, job.configuration, OPTIONS) as session:
        (found,) = layers.check(job, session)
    return found


def test_every_layer_of_a_sound_model_is_exact(artifact: Artifact, configuration: Configuration) -> None:
    found = third_rung(job(artifact, configuration))
    quantized = [q for _, _, q in artifact.quantized()]
    rows = sum(len(prompt) + layers.MORE for prompt in PROMPTS)
    assert (found.rung, found.verdict, found.first) == ("R3", Verdict.EXACT, None)
    assert found.tensors == len(quantized) == 15
    assert found.compared == rows * sum(q.shape[0] for q in quantized)
    assert found.unit == "outputs"
    assert all(kind in found.detail for kind in {carried(artifact, name) for name, _, _ in artifact.quantized()})


def carried(artifact: Artifact, name: str) -> str:
    return str(artifact.outline()[name][0])


def test_every_seeded_defect_is_named(base: QModel, configuration: Configuration, tmp_path: Path) -> None:
    """The runtime's own activations go into both sides, so no defect shows in a layer behind it."""
    names = [name for name, _ in base.quantized() if "layers" in name]
    seeds = dict(zip(names, DEFECTS, strict=False))
    assert len(seeds) == len(DEFECTS) < len(names)
    tensors = {name: base.tensors[name] for name in base.tensors}
    for name, defect in seeds.items():
        tensors[name] = check(defect(tensors[name]), name)
    artifact = exported(QModel(base.config, tensors, base.folder), tmp_path)
    found = third_rung(job(artifact, configuration, dict(base.quantized())))
    assert found.verdict is Verdict.DIFFERENT
    assert found.wrong == tuple(sorted(seeds))
    assert found.first
    assert found.first.tensor in seeds


def test_one_wrong_code_is_placed(artifact: Artifact, configuration: Configuration) -> None:
    name, _, q = next(quantized for quantized in artifact.quantized() if "layers.1.mlp.up" in quantized[0])
    codes = q.codes.copy()
    codes[31, 7] += 1 if codes[31, 7] < q.grid.hi else -1
    asked = job(artifact, configuration)
    found = third_rung(replace(asked, expected={**asked.expected, name: q.replace(codes=codes)}))
    assert (found.verdict, found.wrong) == (Verdict.DIFFERENT, (name,))
    assert found.first
    assert found.first.index[::2] == (0, 31)  # the first prompt, the row of the matrix
    assert found.first.index[1] < len(PROMPTS[0]) + layers.MORE
    assert 0 < found.differing <= sum(len(prompt) + layers.MORE for prompt in PROMPTS)


def test_an_unknown_path_is_named_and_held_to_the_envelope(
    artifact: Artifact, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = next(q.grid.name for name, _, q in artifact.quantized() if "mlp.up" in name)
    monkeypatch.setitem(PATHS, kind, ())
    asked = job(artifact, configuration)
    found = third_rung(asked)
    assert found.verdict is Verdict.BOUNDED
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        place = "repacked" if configuration.name == "repack" and can_repack(session, artifact) else "plain"
    for rows in {len(prompt) for prompt in PROMPTS} | {1}:
        assert f"{kind} {place}, {rows} row{'s' if rows > 1 else ''}: unknown path, " in found.detail
    assert found.differing == 0
    name, _, q = next(quantized for quantized in artifact.quantized() if "mlp.up" in quantized[0])
    codes = q.codes.copy()
    codes[31] = q.grid.hi
    worse = third_rung(replace(asked, expected={**asked.expected, name: q.replace(codes=codes)}))
    assert (worse.verdict, worse.wrong) == (Verdict.DIFFERENT, (name,))


def can_repack(session: Session, artifact: Artifact) -> bool:
    _, stored, q = next(quantized for quantized in artifact.quantized() if "mlp.up" in quantized[0])
    try:
        session.linear(stored, np.zeros((1, q.shape[1]), np.float32))
    except RuntimeAbsent:
        return False
    return True


def test_nothing_is_said_without_prompts_or_where_a_session_cannot(artifact: Artifact) -> None:
    asked = job(artifact, PLAIN)
    with RUNTIME.open(artifact, PLAIN, OPTIONS) as session:
        assert isinstance(session, Replays)
        assert list(layers.check(replace(asked, tokens=()), session)) == []
    torch_runtime = plugins.find("runtimes", "torch_cpu")
    with torch_runtime.open(artifact, torch_runtime.configurations[0], OPTIONS) as session:
        assert list(layers.check(asked, session)) == []


def test_climbing_includes_it_between_kernels_and_logits(artifact: Artifact, configuration: Configuration) -> None:
    try:
        rungs = [check.rung for check in ladder.climb(job(artifact, configuration)).checks]
    except RuntimeAbsent as absent:  # no matrix of this type can be repacked
        pytest.skip(absent.cause)
    assert rungs == ["R1", "R2", "R3", *["R4"] * 3]


class Disturbed:
    """A session whose logits are moved by one bit where it is watched."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def replay(
        self, tokens: Sequence[int], more: int, expected: Mapping[str, QTensor], see: Callable[[Product], None] | None
    ) -> np.ndarray[Any, Any]:
        assert isinstance(self.session, Replays)
        logits = self.session.replay(tokens, more, expected, see)
        if see is not None:
            logits[2, 5] = np.nextafter(logits[2, 5], np.float32(np.inf))
        return logits


def test_a_tap_that_changes_the_logits_is_disqualified(artifact: Artifact) -> None:
    with RUNTIME.open(artifact, PLAIN, OPTIONS) as session:
        (found,) = layers.check(job(artifact, PLAIN), Disturbed(session))  # type: ignore[arg-type]
    values = 4096 * (len(PROMPTS[0]) + layers.MORE)
    assert found.verdict is Verdict.ABSENT
    assert f"1 of {values} logits differ" in found.detail


@pytest.fixture
def model(artifact: Artifact, configuration: Configuration) -> Iterator[Model]:
    made = Model(load(LIB), artifact.path, configuration.name == "repack", 1)
    yield made
    made.close()


def test_a_tap_sees_every_product_and_changes_no_logit(model: Model, artifact: Artifact) -> None:
    seen: list[tap.Seen] = []
    free = model.replay(PROMPTS[0], 2)
    with model.tapped(tap.Tap(load(LIB), seen.append)):
        tapped = model.replay(PROMPTS[0], 2)
    assert not compare_bits(free, tapped).any()
    assert not compare_bits(free, model.replay(PROMPTS[0], 2)).any()
    shapes = {stored.name: q.shape for _, stored, q in artifact.quantized()}
    assert [(s.name, s.shape, s.x.shape, s.y.shape) for s in seen] == [
        (s.name, shapes[s.name], (rows, s.shape[1]), (rows, s.shape[0]))
        for rows, part in ((8, seen[:15]), (1, seen[15:30]), (1, seen[30:]))
        for s in part
    ]
    assert {s.name for s in seen[:15]} == shapes.keys()
    assert len(seen) == 45
    assert not compare_bits(seen[14].y, free[:8]).any()  # the last is the head


def test_a_replay_follows_by_greed(model: Model) -> None:
    logits = model.replay(PROMPTS[1], 3)
    assert not compare_bits(model.logits(PROMPTS[1]), logits[:3]).any()
    (generated,) = model.generate([PROMPTS[1]], 4)
    assert generated == logits[2:].argmax(1).tolist()[: len(generated)]
    assert generated


def test_what_goes_wrong_while_watching_is_raised(model: Model) -> None:
    def refuse(seen: tap.Seen) -> None:
        raise ArithmeticError(seen.name)

    with (
        pytest.raises(ArithmeticError, match=r"blk\.0\.attn_q\.weight"),
        model.tapped(tap.Tap(load(LIB), refuse)),
    ):
        model.replay(PROMPTS[0], 1)
    assert np.isfinite(model.replay(PROMPTS[0], 1)).all()


def test_an_unknown_layout_of_tensors_makes_the_rung_absent(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = [f for f in tap.Tensor._fields_ if f[0] != "view_offs"]
    monkeypatch.setattr(tap, "Tensor", type("Shifted", (tap.Structure,), {"_fields_": fields}))
    with pytest.raises(RuntimeAbsent, match="lays out its tensors in a way"):
        tap.Tap(load(LIB), print)
    found = third_rung(job(artifact, PLAIN))
    assert (found.rung, found.verdict) == ("R3", Verdict.ABSENT)
    assert "lays out its tensors" in found.detail


def test_a_kernel_is_identified_once_a_case(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[str, tuple[int, int], int]] = []

    def counted(multiply: Any, type_name: str, q: QTensor, rows: int) -> Any:
        cases.append((type_name, q.shape, rows))
        return identify(multiply, type_name, q, rows)

    identify = kernels.identify
    monkeypatch.setattr(kernels, "identify", counted)
    assert third_rung(job(artifact, PLAIN)).verdict is Verdict.EXACT
    assert len(set(cases)) == len(cases)
    assert {rows for *_, rows in cases} == {8, 3, 1}


@pytest.mark.parametrize("file", ["storyteller-Q4_0", "storyteller-Q4_K_M"])
def test_files_of_llama_cpps_quantizer_are_exact(file: str, shared: Path, configuration: Configuration) -> None:
    """Q4_0, Q4_K and Q6_K, from the 8 rows on which kernels change (ggml 0.26)."""
    path = shared / "models" / "storyteller-6m-gguf" / f"{file}.gguf"
    artifact = Artifact("gguf", path, EXPORTER.read_back(path), path.parent)
    found = third_rung(replace(job(artifact, configuration), tokens=[list(range(40, 40 + n)) for n in (7, 8, 33)]))
    assert (found.verdict, found.tensors) == (Verdict.EXACT, 43)
    assert "q6_K" in found.detail
