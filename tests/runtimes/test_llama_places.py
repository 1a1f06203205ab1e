"""llama.cpp elsewhere: every rung in every place there is; what is absent is skipped by name.

The quick ones run always, the others in `make matrix`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from on_grid import on_grid
from test_llama_cpp import written

from edgeqaf import checkpoint, plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.parts import join, split
from edgeqaf.protocols import Artifact, Configuration, Form, RuntimeOptions
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.quantize import quantize
from edgeqaf.report import Check, Verdict, compare_bits
from runtime_tests import ladder, layers
from runtime_tests.ggml import places as known
from runtime_tests.ggml.engine import Setting
from runtime_tests.ggml.forward.reproduction import SETTINGS
from runtime_tests.ggml.tap import Seen
from runtime_tests.place import emulator
from runtime_tests.runtimes import llama_cpp_x86
from runtime_tests.selftest.damage import random
from runtime_tests.selftest.kinds.scales import one_scale_one_ulp_off
from runtime_tests.selftest.kinds.weights import one_code_off_by_one

NAMES = ("llama_cpp_arm", "llama_cpp_vulkan", "llama_cpp_x86")
QUICK = ("cortex-a76 armv8.2_2 repack", "sse42 plain", "haswell plain", "haswell repack")
ONE = {"llama_cpp_arm": QUICK[0], "llama_cpp_vulkan": "float32", "llama_cpp_x86": "haswell repack"}
EXPORTER = plugins.find("exporters", "gguf")
PROMPTS = ([5, 900, 77, 13, 2041, 300, 8, 8, 1], [4000, 1, 1700])


def ways() -> list:
    found = [(name, c) for name in NAMES for c in plugins.find("runtimes", name).configurations]
    return [
        pytest.param(name, c, marks=() if c.name in QUICK else pytest.mark.slow, id=f"{name} {c.name}")
        for name, c in found
    ]


@pytest.fixture(scope="module", params=["q4_0", *(pytest.param(g, marks=pytest.mark.slow) for g in ("q4_1", "q8_0"))])
def base(request: pytest.FixtureRequest, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> QModel:
    folder = tmp_path_factory.mktemp(request.param) / "base"
    quantize(tiny_float_model, folder, request.param, "rtn")
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def artifact(base: QModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(base, tmp_path_factory.mktemp("dist"))


def exported(model: QModel, folder: Path) -> Artifact:
    path = folder / EXPORTER.filename
    EXPORTER.export(model, path)
    return Artifact("gguf", path, EXPORTER.read_back(path), model.folder)


@pytest.fixture(scope="module")
def reference(artifact: Artifact) -> list[np.ndarray]:
    """PyTorch's logits."""
    torch = plugins.find("runtimes", "torch_cpu")
    with torch.open(artifact, torch.configurations[0], RuntimeOptions()) as session:
        return [session.logits(tokens) for tokens in PROMPTS]


def climbed(job: ladder.Job) -> list[Check]:
    """Its checks; skipped where the place is absent, or this processor lacks the instructions."""
    runtime = plugins.find("runtimes", job.runtime)
    if (absent := runtime.availability(job.options)).version is None:
        pytest.skip(absent.reason)
    try:
        return ladder.climb(job).checks
    except RuntimeAbsent as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("name", "configuration"), ways())
def test_every_rung(
    name: str, configuration: Configuration, artifact: Artifact, reference: list[np.ndarray], places: Path
):
    """R1 and R2 exact everywhere, R3 wherever the kernel is known, and R4 within what its cause allows."""
    expected = {n: q for n, _, q in artifact.quantized()}
    job = ladder.Job(
        name, configuration, artifact, expected, RuntimeOptions(places=places), PROMPTS, ("Once", "A"), reference
    )
    checks = climbed(job)
    again = [check for check in checks if " again, " in check.subject]
    assert len(again) == (len(SETTINGS) if name == "llama_cpp_x86" else 0)
    assert {(check.verdict, check.first) for check in again} <= {(Verdict.EXACT, None)}, again
    found = {check.rung: check for check in checks if check not in again}
    assert found.keys() == {"R1", "R2", "R4"} | ({"R3"} if name != "llama_cpp_vulkan" else set())
    assert [(found[r].verdict, found[r].first) for r in ("R1", "R2")] == [(Verdict.EXACT, None)] * 2
    assert (found["R4"].verdict, found["R4"].compared) == (Verdict.BOUNDED, sum(r.size for r in reference))
    if "R3" in found:
        rows = sum(len(prompt) + layers.MORE for prompt in PROMPTS)
        assert (found["R3"].verdict, found["R3"].first) == (Verdict.EXACT, None), found["R3"].detail
        assert found["R3"].compared == rows * sum(q.shape[0] for q in expected.values())


def with_defect(q: Tensor, kind: Callable[..., object]) -> QTensor:
    assert isinstance(q, QTensor)
    parts = {name: array.copy() for name, array in split(q).items()}
    kind(parts, q.grid, random(0, kind.__name__))
    return join(q.grid, parts)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "vulkan" in n else ()) for n in ONE])
@pytest.mark.parametrize("base", ["q4_0"], indirect=True)
def test_a_seeded_defect_is_named(name: str, base: QModel, tmp_path: Path, places: Path):
    """By each rung, however far away it is climbed."""
    damaged = {
        "model.layers.0.mlp.up_proj.weight": one_code_off_by_one,
        "model.layers.1.self_attn.q_proj.weight": one_scale_one_ulp_off,  # its rows are permuted
    }
    tensors = {n: with_defect(base.tensors[n], damaged[n]) if n in damaged else base.tensors[n] for n in base.tensors}
    artifact = exported(QModel(base.config, tensors, base.folder), tmp_path)
    configuration = next(c for c in plugins.find("runtimes", name).configurations if c.name == ONE[name])
    job = ladder.Job(name, configuration, artifact, dict(base.quantized()), RuntimeOptions(places=places), PROMPTS)
    checks = climbed(job)
    again = len(SETTINGS) if name == "llama_cpp_x86" else 0
    assert [c.rung for c in checks] == ["R1", "R2", *(["R3"] if "vulkan" not in name else []), *["R4"] * again]
    for check in checks:
        assert check.verdict is Verdict.DIFFERENT
        assert check.rung == "R4" or check.wrong == tuple(sorted(damaged)), check.rung


@pytest.fixture
def engine(artifact: Artifact, places: Path) -> Iterator[known.remote.Remote]:
    try:
        place = known.x86("sse42")(places)
    except RuntimeAbsent as absent:
        pytest.skip(f"{absent}: {absent.remedy}")
    with place.open(artifact, Setting()) as opened:
        yield opened


def test_what_fails_while_watching_is_raised_here_and_the_worker_goes_on(engine: known.remote.Remote):
    before = engine.replay(PROMPTS[0], 2, None)

    def refuse(seen: Seen) -> None:
        raise ArithmeticError(seen.name)

    with pytest.raises(ArithmeticError, match=r"blk\.0\.attn_q\.weight"):
        engine.replay(PROMPTS[0], 2, refuse)
    assert not compare_bits(before, engine.replay(PROMPTS[0], 2, None)).any()


def test_whoever_watches_may_ask_for_more(engine: known.remote.Remote):
    """What a product's own inputs give again is what was seen."""
    seen: list[str] = []

    def again(one: Seen) -> None:
        assert not compare_bits(one.y, engine.multiply(one.name, one.x, one.repacked)).any()
        seen.append(one.name)

    engine.replay(PROMPTS[1], 1, again)
    assert len(seen) == 2 * len(set(seen)) > 0


def test_what_the_worker_refuses_is_told_and_it_goes_on(engine: known.remote.Remote):
    with pytest.raises(Refused, match="token 4096 is outside its vocabulary of 4096"):
        engine.logits([4096])
    with pytest.raises(Refused, match=r"no tensor blk\.9\.x"):
        engine.weights("blk.9.x")
    assert engine.logits([1]).shape == (1, 4096)
    assert engine.decode(engine.encode("Once upon a time")) == "Once upon a time"
    prompts = [engine.encode("Once upon a time"), engine.encode("A")]
    assert list(engine.generate(prompts, 4)) == [*engine.generate(prompts[:1], 4), *engine.generate(prompts[1:], 4)]


def test_a_worker_that_dies_is_named(engine: known.remote.Remote):
    os.kill(engine._worker._process.pid, signal.SIGKILL)
    with pytest.raises(Refused, match=r"sse42: the worker died \(exit -9\)"):
        engine.logits([1])


def test_a_file_that_llama_cpp_does_not_take_is_refused(artifact: Artifact, tmp_path: Path, places: Path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(artifact.path.read_bytes()[:2000])
    runtime = plugins.find("runtimes", "llama_cpp_x86")
    options = RuntimeOptions(places=places)
    if (absent := runtime.availability(options)).version is None:
        pytest.skip(absent.reason)
    file = Artifact("gguf", damaged, {}, tmp_path)
    with pytest.raises(Refused, match="key-value"), runtime.open(file, runtime.configurations[0], options):
        pass


def test_a_variant_that_the_processor_cannot_run_is_absent(places: Path):
    """On a processor of 2008, emulated, where llama.cpp's own question to the processor says no."""
    try:
        place = known.x86("haswell")(places)
        old = (emulator("qemu-x86_64-static", places), "-cpu", "Nehalem", *place.command)
    except RuntimeAbsent as absent:
        pytest.skip(f"{absent}: {absent.remedy}")
    plain = {**place.environment, "OPENBLAS_CORETYPE": "Nehalem"}
    with pytest.raises(RuntimeAbsent, match=r"lacks instructions that llama\.cpp's code for haswell needs"):
        replace(place, command=old, environment=plain).greet()
    sse = known.x86("sse42")(places)
    _, version = replace(sse, command=old, environment=plain).greet()
    assert version.endswith("CPU sse42")


@pytest.mark.parametrize("variant", [*llama_cpp_x86.BEFORE, *llama_cpp_x86.SINCE])
def test_a_variant_is_the_one_that_is_named(variant: str, places: Path):
    try:
        _, version = known.x86(variant)(places).greet()
    except RuntimeAbsent as absent:
        pytest.skip(str(absent))
    assert version.endswith(f"CPU {variant}")


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_runtime_is_a_finding_and_never_a_pass(name: str, artifact: Artifact, tmp_path: Path):
    (check,) = ladder.jobs(artifact, {}, [name], RuntimeOptions(places=tmp_path / "nowhere"))
    assert check.verdict is Verdict.ABSENT
    assert f"{tmp_path / 'nowhere'} has no llama.cpp" in check.detail
    assert "make places" in check.detail


def test_a_build_without_a_gpu_s_code_is_absent(places: Path):
    try:
        place = known.x86("sse42")(places)
    except RuntimeAbsent as absent:
        pytest.skip(f"{absent}: {absent.remedy}")
    with pytest.raises(RuntimeAbsent, match="linux-x64 has no libggml-cuda"):
        replace(place, build=replace(place.build, gpu="cuda")).greet()


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["q4_0", "q4_1", "q8_0", "q4_k", "q6_k"])
@pytest.mark.parametrize(
    "configuration", plugins.find("runtimes", "llama_cpp_vulkan").configurations, ids=lambda c: c.name
)
def test_vulkan_multiplies_in_the_form_that_its_configuration_states(
    configuration: Configuration, grid: str, tmp_path: Path, places: Path
):
    """And in no other: weights of 11 bits and more are not those of float16."""
    made = plugins.find("grids", grid)
    weights = np.random.default_rng(0).normal(0, 1, (40, 2 * made.unit)).astype(np.float32)
    q = on_grid(weights, made)
    artifact, stored = written(q, tmp_path / "m.gguf")
    runtime, options = plugins.find("runtimes", "llama_cpp_vulkan"), RuntimeOptions(places=places)
    if (absent := runtime.availability(options)).version is None:
        pytest.skip(absent.reason)
    with runtime.open(artifact, configuration, options) as session:
        y = session.linear(stored, np.eye(q.shape[1], dtype=np.float32))
    single, half = decode(q).T, decode(q).T.astype(np.float16).astype(np.float32)
    expected, other = (half, single) if configuration.offset_form is Form.HALF else (single, half)
    assert not compare_bits(expected, y).any()
    assert compare_bits(other, y).any()
