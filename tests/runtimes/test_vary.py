"""A session that can runs its model with other numbers of threads, and of tokens at once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_llama_cpp import LIB, OPTIONS, available

from edgeqaf import checkpoint, plugins, vary, witness
from edgeqaf.errors import RuntimeAbsent
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions
from edgeqaf.report import Verdict, compare_bits
from edgeqaf.vary import ROWS, THREADS, Varied, Varies, told
from runtime_tests import settings
from runtime_tests.ggml import places as known
from runtime_tests.ggml.engine import Setting
from runtime_tests.ggml.library import load
from runtime_tests.ggml.model import Model
from runtime_tests.ggml.tap import Seen, Tap
from runtime_tests.golden.isa import machine
from runtime_tests.job import Job

LLAMA = plugins.find("runtimes", "llama_cpp")
PROMPT = np.random.default_rng(0).integers(1, 4000, max(ROWS[1:]) + 7).tolist()


@pytest.fixture(scope="module")
def artifacts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    found = {}
    for name in ("gguf", "onnx"):
        exporter = plugins.find("exporters", name)
        path = tmp_path_factory.mktemp(name) / exporter.filename
        exporter.export(checkpoint.load(tiny_base), path)
        found[name] = Artifact(name, path, exporter.read_back(path), tiny_base)
    return found


@pytest.mark.skipif(available.version is None, reason=available.reason)
@pytest.mark.parametrize("configuration", LLAMA.configurations, ids=lambda c: c.name)
def test_llama_cpp_gives_one_result_under_every_setting(configuration: Configuration, artifacts: dict[str, Artifact]):
    with LLAMA.open(artifacts["gguf"], configuration, OPTIONS) as session:
        assert isinstance(session, Varies)
        found = list(session.vary([PROMPT, PROMPT[:3]]))
        before = witness.digest([session.logits(PROMPT), session.logits(PROMPT[:3])])
    assert [(v.threads, v.rows) for v in found] == [(t, r) for t in THREADS for r in ROWS]
    assert {v.digest for v in found} == {before}
    assert told(found) == "equal with 1 and 2 threads, ubatch 512, 64, 16"


def test_a_worker_varies_too(artifacts: dict[str, Artifact], places: Path):
    try:
        place = known.x86("sse42")(places)
    except RuntimeAbsent as absent:
        pytest.skip(f"{absent}: {absent.remedy}")
    with place.open(artifacts["gguf"], Setting()) as engine:
        made = [engine.logits_with([PROMPT], 2, 16)[0], engine.logits(PROMPT)]
    assert not compare_bits(*made).any()


def test_the_long_prompt_is_shared_out_by_each_and_leaves_one_token():
    assert ROWS[0] >= settings.LONG
    assert [settings.LONG % rows for rows in ROWS[1:]] == [1] * len(ROWS[1:])
    assert len({-(-settings.LONG // rows) for rows in ROWS}) == len(ROWS)


@pytest.mark.skipif(available.version is None, reason=available.reason)
@pytest.mark.skipif("avx2" not in machine(), reason="that one row has a kernel of its own is known of AVX2 and later")
@pytest.mark.parametrize("configuration", LLAMA.configurations, ids=lambda c: c.name)
def test_a_token_left_by_itself_is_told(configuration: Configuration, artifacts: dict[str, Artifact]):
    """The float head adds in another order for one row than for more; every share of 64 or 16 leaves one."""
    job = Job("llama_cpp", configuration, artifacts["gguf"], {}, OPTIONS, tokens=[PROMPT[:3], PROMPT[3:9]])
    with LLAMA.open(artifacts["gguf"], configuration, OPTIONS) as session:
        (found,) = settings.check(job, session)
    assert (found.verdict, found.compared, found.differing) == (Verdict.BOUNDED, len(THREADS) * len(ROWS), len(THREADS))
    different = (f"{threads} ubatch {rows}" for threads in ("1 thread", "2 threads") for rows in ROWS[1:])
    assert found.detail.startswith(f"{'; '.join(different)} differ from 1 thread ubatch {ROWS[0]}")


@pytest.mark.skipif(available.version is None, reason=available.reason)
@pytest.mark.parametrize("rows", ROWS)
def test_no_more_rows_are_computed_at_once_than_said(rows: int, artifacts: dict[str, Artifact]):
    seen: list[Seen] = []
    model = Model(load(LIB), artifacts["gguf"].path, False, 1)
    with model.under(threads=1, rows=rows), model.tapped(Tap(load(LIB), seen.append)):
        model.logits(PROMPT)
    model.close()
    whole, rest = divmod(len(PROMPT), rows)
    assert [len(s.x) for s in seen if s.name == seen[0].name] == [rows] * whole + [rest] * (rest > 0)


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("onnxruntime_web", marks=pytest.mark.slow)])
def test_onnx_runtime_varies_the_threads_that_it_takes(name: str, artifacts: dict[str, Artifact], places: Path):
    """WebAssembly runs in one, whatever is asked."""
    runtime, options = plugins.find("runtimes", name), RuntimeOptions(places=places)
    if (absent := runtime.availability(options)).version is None:
        pytest.skip(absent.reason)
    with runtime.open(artifacts["onnx"], runtime.configurations[-1], options) as session:
        found = list(session.vary([PROMPT]))
        assert found[0].digest == witness.digest([session.logits(PROMPT)])
    assert [(v.threads, v.rows) for v in found] == [(t, None) for t in (THREADS if name == "onnxruntime" else (1,))]


def cases() -> Iterator[tuple[list[Varied], str]]:
    same, other = [Varied(t, r, "a") for t in (1, 2) for r in (512, 16)], Varied(2, 16, "b")
    yield same, "equal with 1 and 2 threads, ubatch 512, 16"
    yield [*same[:3], other], "2 threads ubatch 16 differs from 1 thread ubatch 512"
    yield (
        [*same[:2], Varied(2, 512, "c"), other],
        ("2 threads ubatch 512; 2 threads ubatch 16 differ from 1 thread ubatch 512"),
    )
    yield [Varied(1, None, "a"), Varied(2, None, "a")], "equal with 1 and 2 threads"
    yield [Varied(1, None, "a"), Varied(2, None, "b")], "2 threads differs from 1 thread"
    yield [Varied(1, None, "a")], "1 thread and no other"
    yield [], "no setting to vary"


@pytest.mark.parametrize(("found", "words"), [*cases()])
def test_what_was_found_is_told_in_a_line(found: list[Varied], words: str):
    assert vary.told(iter(found)) == words
