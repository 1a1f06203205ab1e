"""A verifier that cannot fail is worthless: every seeded defect is caught and named, and nothing that is sound is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeqaf import plugins
from edgeqaf.errors import VerificationFailed
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.report import Check, Verdict
from runtime_tests import ladder
from runtime_tests.ggml.library import package_file
from runtime_tests.selftest import bench, engines, matrices, peers, registry, subjects
from runtime_tests.selftest.examine import Asked, Bench
from runtime_tests.selftest.findings import Control, Finding, Report
from runtime_tests.selftest.machine import Code
from runtime_tests.selftest.registry import Target

OPTIONS = RuntimeOptions()
KNOWN = ("q4_0", "q4_1", "q8_0", "q4_k", "uint4")  # grids of which R3 knows every kernel
HOME = ladder.at_home()
GRIDS = plugins.names("grids")
ENGINES = {name: plugins.find("runtimes", name).availability(OPTIONS) for name in HOME}
on_every_engine = pytest.mark.skipif(
    any(found.version is None for found in ENGINES.values()), reason=f"not every runtime is here: {ENGINES}"
)


SOME = ("q4_0", "q4_1", "uint4")  # grids whose ONNX programs are tried where not all are


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def tried(request: pytest.FixtureRequest) -> list[subjects.Subject]:
    """Every grid in GGUF, and in ONNX some or all."""
    every = list(subjects.made_on_the_fly())
    return [s for s in every if s.format == "gguf" or request.param == "all" or {*s.grids} & {*SOME}]


@pytest.fixture(scope="module")
def report(tried: list[subjects.Subject]) -> Report:
    """The self-test, as `edgeqaf verify --self-test` runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "made_on_the_fly", lambda: iter(tried))
        return bench.run(None, HOME, OPTIONS, 0, lambda done, note="": None)


def kinds_of(*targets: Target) -> set[str]:
    return {kind.name for kind in registry.every(*targets)}


def test_every_defect_is_caught_and_nothing_sound_is_accused(report: Report) -> None:
    assert [f for f in report.findings if not f.first] == []
    assert [c for c in report.controls if c.wrong] == []
    assert len(report.findings) >= 200
    assert len(report.controls) > 2 * len({f.subject for f in report.findings})
    assert report.passed
    bench.require(report)


@on_every_engine
def test_every_kind_is_seeded_or_named_as_missing(report: Report) -> None:
    seeded, missing = {f.kind for f in report.findings}, {m.what for m in report.missing}
    assert kinds_of() == seeded | (missing & kinds_of(Target.LIBRARY, Target.SESSION))


@on_every_engine
def test_every_format_program_and_runtime_is_covered(report: Report, tried: list[subjects.Subject]) -> None:
    damaged = {f.subject for f in report.findings}
    assert damaged == {subject.name for subject in tried} | {name for name in HOME if engines.kinds(name)}
    assert {c.who.split()[0] for c in report.controls} >= set(HOME)


def test_every_grid_is_tried() -> None:
    every = list(subjects.made_on_the_fly())
    assert {grid for subject in every for grid in subject.grids} == set(GRIDS)
    assert {(s.format, s.options.profile, s.options.form) for s in every} == {
        ("gguf", "everyday", "qdq"), ("onnx", "everyday", "qdq"), ("onnx", "everyday", "matmulnbits"),
        ("onnx", "exact", "qdq"),
    }  # fmt: skip
    assert {grid for s in every if s.bare for grid in s.grids} == set(GRIDS)


def test_each_rung_alone_names_every_damaged_matrix(report: Report) -> None:
    """In every configuration that reaches it: R0 without file hashes, R1, R2, and R3 where all kernels are known.

    Of a grid whose blocks are rows, dropping the last leaves zeros for the next layer, which then hide its defects.
    """
    found = [f for f in report.findings if f.kind in kinds_of(Target.MATRIX, Target.PAIR)]
    assert len(found) >= 200
    for finding in found:
        assert all(finding.rungs[rung] for rung in ("R0 tensors", "R1", "R2")), finding
        assert all(blind.startswith("R3 ") for blind in finding.blind)
    known = [f for f in found if "R3" in f.rungs and f.subject.endswith(KNOWN)]
    assert len(known) >= 100
    assert [f for f in known if not f.rungs["R3"]] == []


def test_what_an_artifact_says_is_caught_without_file_hashes(report: Report) -> None:
    found = [f for f in report.findings if f.kind in kinds_of(Target.STATEMENT)]
    assert found
    assert all(f.rungs["R0 statements"] for f in found)
    rotation = next(f for f in found if f.kind == "rotation base changed")
    assert rotation.by == "R0 statements: llama.rope.freq_base"
    assert not rotation.rungs["R0 tensors"]


def test_floats_are_caught_by_digest_and_by_the_witness(report: Report) -> None:
    found = [f for f in report.findings if f.kind in kinds_of(Target.FLOATS)]
    assert found
    assert all(f.rungs["R0 tensors"] and f.rungs["R4"] and f.tensors[0] in f.by for f in found)


def test_a_changed_engine_is_caught_by_what_it_computes(report: Report) -> None:
    for finding in (f for f in report.findings if f.family == "runtimes"):
        assert not any(rung.startswith("R0") for rung in finding.rungs)
        assert finding.by


def test_tolerances_see_less_and_accuse_what_is_sound(report: Report) -> None:
    seen = {name: [f.peers[name] for f in report.findings if f.peers] for name in peers.TOLERANCES}
    assert all(0 < sum(each) < len(each) for each in seen.values())
    noise = {name: [c.noise[name] for c in report.controls if c.noise] for name in peers.TOLERANCES}
    assert any(noise["1e-5"])  # 8-bit activations are no defect
    said = report.as_json()
    assert said["peers"] == {name: [sum(each), len(each)] for name, each in seen.items()}
    assert json.loads(json.dumps(said))["caught"] == len(report.findings)


@pytest.fixture
def sound(tmp_path: Path) -> Bench:
    """A subject that needs nothing but PyTorch."""
    subject = next(s for s in subjects.made_on_the_fly() if s.name == "gguf q4_1")
    return Bench(subject, Asked((ladder.REFERENCE,), OPTIONS, 3), tmp_path)


def test_a_seed_places_the_defects_and_another_others(sound: Bench, tmp_path: Path) -> None:
    def places(seed: int, name: str) -> list[tuple[str, tuple[str, ...]]]:
        (tmp_path / name).mkdir()
        made = Bench(sound.subject, Asked((ladder.REFERENCE,), OPTIONS, seed), tmp_path / name)
        return [(e.kind, e.tensors) for e in matrices.examine(made) if isinstance(e, Finding)]

    first = places(3, "first")
    assert places(3, "again") == first
    assert places(4, "other") != first


def test_a_blind_verifier_is_told(sound: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown the sound artifact in place of each damaged one, no rung sees a thing, and that is what comes out."""
    look = Bench.look
    monkeypatch.setattr(Bench, "look", lambda self, artifact, way, asked: look(self, self.artifact, way, asked))
    monkeypatch.setattr(
        matrices.ladder, "check_file", lambda artifact, digests: Check("R0", artifact.format, Verdict.EXACT)
    )
    report = Report.of(3, matrices.examine(sound))  # type: ignore[arg-type]
    assert len(report.escaped) == len(report.findings) > 15
    assert not report.passed
    with pytest.raises(VerificationFailed, match=f"{len(report.findings)} of {len(report.findings)} defects escaped; "):
        bench.require(report)


def test_a_false_alarm_fails() -> None:
    caught = Finding("one", "weights", "gguf q4_0", ("a",), {"R0 tensors": True})
    report = Report(0, [caught], [Control("gguf q4_0", "torch_cpu float32", ("b",))], [])
    assert not report.passed
    with pytest.raises(VerificationFailed, match="torch_cpu float32: accused without cause: b"):
        bench.require(report)
    with pytest.raises(VerificationFailed, match="no defect could be seeded"):
        bench.require(Report(0, [], [], []))


def test_file_hashes_alone_do_not_count() -> None:
    assert Finding("one", "weights", "gguf q4_0", ("a",), {"files": True, "R1": False}).first == ""
    assert Finding("one", "weights", "gguf q4_0", ("a",), {"files": True, "R2": True, "R1": False}).first == "R2"


def test_tolerances_are_those_of_the_projects_named() -> None:
    a = np.ones((2, 50), np.float32)
    b = a.copy()
    b[0, 0] += 0.1  # NMSE 1e-4 exactly, in float64 of float32 values a little more
    assert peers.nmse(a, a) == 0
    assert peers.nmse(a, b) == pytest.approx(1e-4, rel=1e-6)
    assert peers.cosine(a, a) == pytest.approx(1)
    assert peers.seen(a, a) == dict.fromkeys(peers.TOLERANCES, False)
    assert peers.seen(a, b) == {
        "NMSE 5e-4": False, "NMSE 1e-4": True, "NMSE 1e-6": True, "cosine 0.9999": False, "1e-5": True,
    }  # fmt: skip
    assert peers.within(a, a + np.float32(1.5e-5), 1e-5)  # absolute and relative together
    assert peers.seen(a, a * np.nan) == dict.fromkeys(peers.TOLERANCES, True)


def test_machine_code_is_found_by_symbol_and_changed_in_place() -> None:
    if ENGINES["llama_cpp"].version is None:
        pytest.skip(ENGINES["llama_cpp"].reason)
    code = Code(package_file())
    before = bytes(code.raw)
    assert code.understood
    assert code.replace(r"^quantize_row_q8_0$", rb".", lambda piece: None) > 100  # every byte of it
    assert code.replace(r"^no such function$", rb".", lambda piece: None) == 0
    assert bytes(code.raw) == before
    assert code.constant(b"\x00\x00\xfe\x42", b"\x00\x00\xfc\x42") > 0
    assert len(code.raw) == len(before)
    assert bytes(code.raw) != before


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in plugins.names("runtimes") if n not in HOME])
@pytest.mark.parametrize("grid", ["q4_0", "q4_1", "q8_0"])
def test_matrices_are_named_elsewhere_too(name: str, grid: str, places: Path, tmp_path: Path) -> None:
    options = RuntimeOptions(places=places)
    if (absent := plugins.find("runtimes", name).availability(options)).version is None:
        pytest.skip(absent.reason)
    subject = next(s for s in subjects.made_on_the_fly() if s.name == f"onnx {grid}")
    events: list[Any] = list(matrices.examine(Bench(subject, Asked((name,), options, 0), tmp_path)))
    report = Report.of(0, events)
    assert report.passed
    assert all(f.rungs["R1"] and f.rungs["R2"] and f.rungs["R3"] for f in report.findings)
