"""llama.cpp's forward written again, against the library's own: operations, every node of a graph, and whole models.

The library is xllamacpp's, or the folder in ``EDGEQAF_LLAMA_LIB``; other CPU variants have a process each.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from test_kernel_emulators import VARIANTS
from test_layers import EXPORTER, exported, job
from test_llama_cpp import LIB, OPTIONS, RUNTIME, available

from edgeqaf.child import stream
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions
from edgeqaf.qtensor import QTensor
from edgeqaf.quantize import quantize
from edgeqaf.report import Check, Verdict, compare_bits
from runtime_tests import whole
from runtime_tests.ggml.forward import flash, identify, reproduction
from runtime_tests.ggml.forward.arithmetic import KNOWN, Arithmetic
from runtime_tests.ggml.forward.exponential import swiglu
from runtime_tests.ggml.forward.family import Shape
from runtime_tests.ggml.forward.reproduction import SETTINGS
from runtime_tests.ggml.forward.rotation import Rope
from runtime_tests.ggml.library import load
from runtime_tests.ggml.matmul import Cpu
from runtime_tests.ggml.model import Model, Settings
from runtime_tests.ggml.operation import compute
from runtime_tests.ggml.quantize import quantize as quantize_file

pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)
OLD = {"x64": "plain C with SSE2", "sse42": "SSE", "sandybridge": "AVX", "ivybridge": "AVX with F16C",
       "piledriver": "AVX with FMA", "haswell": "AVX2 with FMA", "alderlake": "AVX2 with FMA"}  # fmt: skip
ALWAYS = ("x64", "haswell", "skylakex")  # the others are slow tests
HEADS = (8, 16, 20, 32, 64, 80, 128)
PROMPTS = ([5], [5, 90, 77, 13, 241, 300, 8, 8], [7 * i % 500 for i in range(70)])  # one row, rows, tiles
GRIDS = ("q4_0", "q4_1", "q8_0")
HIDDEN, INNER, HEADS_Q, HEADS_KV, HEAD = 64, 96, 4, 2, 16  # of the tiny model, two layers


def shape(size: int, halves: bool, factors: bool = False) -> Shape:
    given = np.linspace(1, 8, size // 2).astype(np.float32) if factors else None
    return Shape(2, 4, 2, size, 1e-5, Rope(10000.0, size, halves, given))


def operations(library: Path | None, threads: int) -> Iterator[tuple[str, int]]:
    """The arithmetic of each size of heads, and how many numbers it was held against."""
    cpu = Cpu(load(library), threads)
    for index, size in enumerate(HEADS):
        asked = shape(size, halves=index % 2 == 1, factors=index % 3 == 0)
        found = identify.identify(cpu, asked)
        yield found.name, sum(trial.found.size for trial in identify.trials(cpu, asked))
    cpu.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_one_arithmetic_has_the_bits_of_all_operations(threads: int) -> None:
    found = list(operations(LIB, threads))
    assert len({name for name, _ in found}) == 1
    assert min(values for _, values in found) > 2000
    if LIB is None and "AVX2" in load(None).version:
        assert found[0][0] == "AVX2 with FMA, masked"


def folder_of(variant: str, libllama: Path, folder: Path) -> Path:
    """llama.cpp with one CPU variant alone."""
    for file in libllama.glob("*.so*"):
        if "-cpu-" not in file.name or file.stem == f"libggml-cpu-{variant}":
            (folder / file.name).symlink_to(file.resolve())
    return folder


variants = pytest.mark.parametrize(
    "variant", [v if v in ALWAYS else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
)


@variants
def test_another_cpu_has_its_own(variant: str, libllama: Path, tmp_path: Path) -> None:
    try:
        found = list(stream(f"llama.cpp, {variant}", operations, folder_of(variant, libllama, tmp_path), 1))
    except RuntimeAbsent as absent:
        pytest.skip(absent.cause)
    assert {name for name, _ in found} == {OLD.get(variant, "AVX-512")}


def test_arithmetics_differ() -> None:
    """No two are one and the same, and none passes for another."""
    cpu = Cpu(load(LIB), 1)
    trials = [*identify.trials(cpu, shape(64, False))]
    cpu.close()
    made = [b"".join(trial.again(known).tobytes() for trial in trials) for known in KNOWN]
    assert len(set(made)) == len({known.name for known in KNOWN}) == len(KNOWN)


def known() -> tuple[Cpu, Arithmetic]:
    cpu = Cpu(load(LIB), 1)
    return cpu, identify.identify(cpu, shape(64, False))


def test_exponentials_of_all_sizes() -> None:
    """A million gates from all of float32: zeros, subnormals, infinities, and both ends of exp."""
    cpu, found = known()
    gate = np.arange(0, 1 << 32, 4093, dtype=np.uint64).astype(np.uint32).view(np.float32)
    gate = np.concatenate(
        [gate, np.linspace(-110, 110, 1 << 16, dtype=np.float32), np.float32([0, -0.0, np.inf, -np.inf])]
    )
    gate = gate[~np.isnan(gate)]
    gate = gate[: len(gate) // 32 * 32].reshape(-1, 32)
    up = np.ones_like(gate)
    theirs = compute(cpu, lambda c, at, a, b: c.ggml_swiglu_split(at, a, b), gate, up).reshape(gate.shape)
    with np.errstate(all="ignore"):
        ours = swiglu(found.exponential, gate, up)
    assert (np.isnan(ours) == np.isnan(theirs)).all()  # of minus infinity over infinity
    assert not compare_bits(np.nan_to_num(ours), np.nan_to_num(theirs)).any()
    cpu.close()


def test_float16_is_rounded_as_numpy_rounds() -> None:
    x = np.arange(0, 1 << 32, 65521, dtype=np.uint64).astype(np.uint32).view(np.float32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = np.nextafter((halves[1:] + halves[:-1]) / 2, np.float32([[-9e9], [0], [9e9]])).reshape(-1)
    x = np.concatenate([x[np.isfinite(x)], halves, (halves[1:] + halves[:-1]) / 2, between]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    assert not compare_bits(expected, np.float32([flash._half(value) for value in x])).any()


@pytest.fixture(scope="module")
def artifacts(tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The tiny model on each grid, its embedding (and head) too, but for q4_0, where they are float."""
    made = {}
    for grid in GRIDS:
        folder = tmp_path_factory.mktemp(grid)
        ends = {} if grid == "q4_0" else {"ends": "q8_0"}
        made[grid] = exported(quantize(tiny_float_model, folder / "base", grid, "absmax", **ends), folder)
    return made


@pytest.fixture(params=GRIDS)
def artifact(request: pytest.FixtureRequest, artifacts: dict[str, Artifact]) -> Artifact:
    return artifacts[request.param]


@pytest.fixture
def plain(artifacts: dict[str, Artifact]) -> Artifact:
    return artifacts["q4_0"]


@pytest.fixture(params=RUNTIME.configurations, ids=lambda c: c.name)
def configuration(request: pytest.FixtureRequest) -> Configuration:
    return request.param


def asked(artifact: Artifact, configuration: Configuration, prompts: object = PROMPTS) -> list[Check]:
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        return [*whole.check(replace(job(artifact, configuration), tokens=prompts), session)]


def test_a_sound_model_is_exact_under_every_setting(artifact: Artifact, configuration: Configuration) -> None:
    found = asked(artifact, configuration)
    positions = sum(len(prompt) + whole.MORE for prompt in PROMPTS)
    assert [(c.rung, c.verdict, c.tensors, c.differing, c.unit, c.first) for c in found] == [
        ("R4", Verdict.EXACT, len(PROMPTS), 0, "values", None)
    ] * len(SETTINGS)
    assert [c.subject for c in found] == [f"llama_cpp {configuration.name} again, {s}, on gguf" for s in SETTINGS]
    assert all(f"{positions * 4096:,} logits of the whole model at {positions} positions" in c.detail for c in found)
    widths = HIDDEN * (2 + 2 * 6) + 2 * (HEADS_Q + 2 * HEADS_KV) * HEAD + 2 * 3 * INNER  # and two of attention's
    before = positions * (widths + 2 * HIDDEN)
    cells = sum(sum(-(-n // 64) * 64 for n in seen(prompt)) for prompt in PROMPTS) * 2 * HEADS_Q
    assert [c.compared - positions * 4096 for c in found] == [before + cells] * 2 + [before]


def seen(prompt: list[int]) -> list[int]:
    """Cells that each position's shares are given for: those of its evaluation."""
    return [len(prompt)] * len(prompt) + [len(prompt) + 1 + i for i in range(whole.MORE)]


@pytest.mark.parametrize("threads", [1, 2])
def test_long_prompts_and_what_follows_them(plain: Artifact, threads: int, configuration: Configuration) -> None:
    """More tokens than are evaluated at once, and so many cells that threads share those of one token."""
    expected = {name: q for name, _, q in plain.quantized()}
    with RUNTIME.open(plain, configuration, RuntimeOptions(LIB, threads)) as session:
        for made in session.reproduce([11 * i % 4000 for i in range(600)], 3, expected):
            assert (made.first, made.differing, made.found.shape) == (None, 0, (603, 4096))
            assert not compare_bits(made.expected, made.found).any()


def test_threads_show_where_they_share_cells(plain: Artifact) -> None:
    """One token by itself, flash attention on, 512 cells or more; nowhere else."""
    for length in (200, 600):
        made: dict[Settings, list[np.ndarray]] = {}
        for settings, threads in product(SETTINGS, (1, 2)):
            model = Model(load(LIB), plain.path, repack=False, threads=threads)
            with model.under(settings):
                made.setdefault(settings, []).append(model.replay([11 * i % 4000 for i in range(length)], 3))
            model.close()
        differ = {settings: compare_bits(*both).any(1) for settings, both in made.items()}
        assert not any(where[:length].any() for where in differ.values())
        assert [where[length:].all() for where in differ.values()] == [False, False, length == 600]
        assert [where[length:].any() for where in differ.values()] == [False, False, length == 600]


def whole_models(library: Path, artifacts: list[Artifact]) -> Iterator[tuple[Verdict, str]]:
    options = RuntimeOptions(library)
    for artifact, configuration in product(artifacts, RUNTIME.configurations):
        with RUNTIME.open(artifact, configuration, options) as session:
            for check in whole.check(replace(job(artifact, configuration), tokens=PROMPTS), session):
                yield check.verdict, check.reason


@variants
def test_another_cpu_is_exact(variant: str, artifacts: dict[str, Artifact], libllama: Path, tmp_path: Path) -> None:
    folder = folder_of(variant, libllama, tmp_path)
    try:
        found = list(stream(f"llama.cpp, {variant}", whole_models, folder, [*artifacts.values()]))
    except RuntimeAbsent as absent:
        pytest.skip(absent.cause)
    assert len(found) == len(GRIDS) * len(RUNTIME.configurations) * len(SETTINGS)
    assert {verdict for verdict, _ in found} == {Verdict.EXACT}
    assert all(OLD.get(variant, "AVX-512") in reason for _, reason in found)


def changed(q: QTensor) -> QTensor:
    """One code, by one."""
    codes = q.codes.copy()
    codes[0, 3] += 1 if codes[0, 3] < q.grid.hi else -1
    return q.replace(codes=codes)


@pytest.mark.parametrize(
    ("tensor", "node"),
    [
        ("layers.0.self_attn.q_proj", "Qcur-0"), ("layers.0.self_attn.v_proj", "Vcur-0"),
        ("layers.1.self_attn.o_proj", "attn_out-1"), ("layers.1.mlp.up_proj", "ffn_up-1"),
        ("layers.1.mlp.down_proj", "ffn_out-1"),
    ],
)  # fmt: skip
def test_one_wrong_code_is_placed(plain: Artifact, configuration: Configuration, tensor: str, node: str) -> None:
    own = {name: q for name, _, q in plain.quantized()}
    name = f"model.{tensor}.weight"
    wrong = replace(job(plain, configuration, own | {name: changed(own[name])}), tokens=PROMPTS)
    with RUNTIME.open(plain, configuration, OPTIONS) as session:
        found = [*whole.check(wrong, session)]
    assert [c.verdict for c in found] == [Verdict.DIFFERENT] * len(SETTINGS)
    for check in found:
        assert check.first
        assert check.first.tensor == f"prompt 0, node {node}"
        assert 0 < check.differing <= check.compared
        assert f"{check.differing:,} differ: prompt 0, node {node}" in check.reason


def with_shape(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    read = reproduction.shape
    monkeypatch.setattr(reproduction, "shape", lambda file: replace(read(file), **changes))


def firsts(artifact: Artifact) -> list[str]:
    """Prompts of several tokens: at position 0 nothing is rotated."""
    found = asked(artifact, RUNTIME.configurations[0], PROMPTS[1:])
    assert {c.verdict for c in found} == {Verdict.DIFFERENT}
    return [c.first.tensor for c in found if c.first]


def test_another_epsilon_is_placed(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with_shape(monkeypatch, epsilon=1e-3)
    assert firsts(plain) == ["prompt 0, node attn_norm-0"] * len(SETTINGS)


def test_another_rotation_is_placed(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with_shape(monkeypatch, rope=Rope(10001.0, 16, halves=False))
    assert firsts(plain) == ["prompt 0, node Qcur-0"] * len(SETTINGS)


def test_another_type_of_cache_is_placed(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp runs under one setting, and is computed again under another."""

    class Other(reproduction.Network):
        def __init__(self, *arguments: object) -> None:
            network, (_, half, flashing) = list(arguments), SETTINGS
            network[3] = {SETTINGS[0]: half, half: SETTINGS[0], flashing: half}[network[3]]  # type: ignore[index]
            super().__init__(*network)  # type: ignore[arg-type]

    monkeypatch.setattr(reproduction, "Network", Other)
    found = firsts(plain)
    assert found == ["prompt 0, node kq_soft_max-0", "prompt 0, node kq_soft_max-0", "prompt 0, node attn_out-0"]


def test_what_is_not_known_is_absent_by_name(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "KNOWN", KNOWN[-1:] if LIB is None else KNOWN[:1])
    if available.version and "AVX2" in available.version:
        (found,) = asked(plain, RUNTIME.configurations[0])
        assert found.verdict is Verdict.ABSENT
        assert "this build's product of float32" in found.detail
        assert "has no arithmetic known here; otherwise it is plain C with SSE2" in found.detail


def test_a_model_too_large_is_said_to_be(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "BUDGET", 1000.0)
    (found,) = asked(plain, RUNTIME.configurations[0])
    assert found.verdict is Verdict.ABSENT
    positions = sum(len(prompt) + whole.MORE for prompt in PROMPTS)
    assert f"not computed again: {positions} positions x 323,904 weights are more than 1,000 products" in found.detail


@pytest.mark.parametrize("file", ["storyteller-6m-gguf/storyteller-Q4_0", "storyteller-6m-gguf/storyteller-Q4_K_M"])
def test_files_of_llama_cpps_quantizer_are_exact(file: str, shared: Path, configuration: Configuration) -> None:
    """Q4_0, Q4_K and Q6_K, the embedding's rows among them."""
    path = shared / "models" / f"{file}.gguf"
    artifact = Artifact("gguf", path, EXPORTER.read_back(path), path.parent)
    found = asked(artifact, configuration, [list(range(40, 40 + n)) for n in (1, 8, 33, 70)])
    assert [(c.verdict, c.differing) for c in found] == [(Verdict.EXACT, 0)] * len(SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260K", "tinystories656k", "storyteller-6m"])
@variants
def test_real_models_are_exact_on_every_cpu(
    name: str, variant: str, shared: Path, libllama: Path, tmp_path: Path
) -> None:
    """stories260K by llama.cpp's quantizer: rows of 172 inputs fill no vector, and their matrix stays float16."""
    source, folder = shared / "models" / name, folder_of(variant, libllama, tmp_path)
    if name == "stories260K":
        path = tmp_path / "model.gguf"
        quantize_file(folder, source / f"{name}.gguf", path, "Q4_0", threads=1, pure=True, imatrix=None)
        artifact = Artifact("gguf", path, EXPORTER.read_back(path), tmp_path)
    else:
        artifact = exported(quantize(source, tmp_path / "base", "q4_0", "absmax"), tmp_path)
    try:
        found = list(stream(f"llama.cpp, {variant}", whole_models, folder, [artifact]))
    except RuntimeAbsent as absent:
        pytest.skip(absent.cause)
    assert found == [(Verdict.EXACT, reason) for _, reason in found]
    assert len(found) == len(RUNTIME.configurations) * len(SETTINGS)
