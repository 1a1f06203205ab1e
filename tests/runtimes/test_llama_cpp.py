"""The llama.cpp leaf against the real library: xllamacpp, or the folder in ``EDGEQAF_LLAMA_LIB``.

A process holds one CPU variant, so other variants are tested by naming another folder and running again.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.parts import split
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions, Session, Stored
from edgeqaf.qtensor import QTensor, Supers, decode
from edgeqaf.report import compare_bits
from edgeqaf.source import FloatModel
from exporters.gguf.blocks import CARRIERS, pack
from runtime_tests.ggml import library, model, structs

LIB = Path(os.environ["EDGEQAF_LLAMA_LIB"]) if "EDGEQAF_LLAMA_LIB" in os.environ else None
OPTIONS = RuntimeOptions(llama_lib=LIB)
RUNTIME = plugins.find("runtimes", "llama_cpp")
EXPORTER = plugins.find("exporters", RUNTIME.reads)
GRIDS = [name for name in plugins.names("grids") if EXPORTER.refuses(plugins.find("grids", name)) is None]
BASE = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
OUT, IN = 64, 544  # OUT: whole groups of rows in every repacked layout; IN: more one-hot rows than one graph takes
PROMPTS = ("Once upon a time, there was a", "The old king looked at the sea and", "Lily")

available = RUNTIME.availability(OPTIONS)
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)


@pytest.fixture(params=RUNTIME.configurations, ids=lambda c: c.name)
def configuration(request: pytest.FixtureRequest) -> Configuration:
    return request.param


@pytest.fixture(scope="module")
def model_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model on q4_0, as the exporter writes it: its query and key rows are permuted."""
    source = FloatModel(BASE)
    grid, quantize = plugins.find("grids", "q4_0"), plugins.find("quantizers", "absmax")
    tensors = {n: quantize(source[n], grid) if source.is_linear(n) else source[n] for n in source}
    path = tmp_path_factory.mktemp("dist") / EXPORTER.filename
    EXPORTER.export(QModel(source.config, tensors, BASE), path)
    return Artifact(RUNTIME.reads, path, EXPORTER.read_back(path), BASE)


@pytest.fixture
def storyteller(model_artifact: Artifact, configuration: Configuration) -> Iterator[Session]:
    with RUNTIME.open(model_artifact, configuration, OPTIONS) as session:
        yield session


def width(grid_name: str) -> int:
    """Inputs of a matrix on a grid: `IN`, or the next number of whole super-blocks."""
    unit = plugins.find("grids", grid_name).unit
    return -(-IN // unit) * unit


def random_tensor(grid_name: str, out: int = OUT, inputs: int | None = None) -> QTensor:
    """Any codes, and parameters over all of float16: zeros, subnormals, both signs, up to 65504."""
    grid = plugins.find("grids", grid_name)
    inputs = inputs or width(grid_name)
    rng = np.random.default_rng(0)
    codes = rng.integers(grid.lo, grid.hi + 1, (out, inputs)).astype(np.int8)

    def halves(each: int = grid.block) -> np.ndarray:
        bits = rng.integers(0, 0x7C00, (out, inputs // each)) | (rng.integers(0, 2, (out, 1)) << 15)
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    if grid.levels is not None:
        spans = [span for span in (grid.levels.scale, grid.levels.zero) if span is not None]
        level = [(halves(grid.unit), rng.integers(low, high + 1, (out, inputs // grid.block)).astype(np.int8))
                 for low, high in spans]  # fmt: skip
        supers = Supers(*(part for pair in level for part in pair))
        return QTensor(grid, codes, supers.scale, supers.zero, supers)
    return QTensor(grid, codes, halves(), halves() if grid.zero.value == "offset" else None)


def written(q: QTensor, path: Path, rows: np.ndarray | None = None) -> tuple[Artifact, Stored]:
    """A GGUF file that holds ``q`` alone, its rows in the order ``rows``."""
    stored = Stored(q, "blk.0.ffn_up.weight", rows)
    blocks = stored.in_file_order(pack(q.grid, split(q)))
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType(CARRIERS[q.grid.name].layout.ggml_type)
    writer.add_tensor(stored.name, blocks.view(np.uint8).reshape(len(blocks), -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Artifact("gguf", path, {"up": stored}, path.parent), stored


def linear(artifact: Artifact, stored: Stored, configuration: Configuration, x: np.ndarray) -> np.ndarray:
    """The runtime's product, or a skip where it has no kernel of this kind for the tensor."""
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        try:
            return session.linear(stored, x)
        except RuntimeAbsent as absent:
            if configuration.name == "plain":
                raise
            pytest.skip(absent.cause)


def differing(expected: np.ndarray, found: np.ndarray) -> int:
    return int(compare_bits(expected, found).sum())


def test_version_names_library_and_cpu():
    assert "ggml 0." in available.version
    assert "CPU " in available.version


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("permuted", [False, True])
def test_weights_are_what_decode_says(grid: str, permuted: bool, tmp_path: Path):
    q = random_tensor(grid)
    rows = np.random.default_rng(1).permutation(OUT) if permuted else None
    artifact, stored = written(q, tmp_path / "m.gguf", rows)
    with RUNTIME.open(artifact, RUNTIME.configurations[0], OPTIONS) as session:
        assert differing(decode(q), session.weights(stored)) == 0


@pytest.mark.parametrize("grid", GRIDS)
def test_every_weight_comes_out_of_the_kernel(grid: str, configuration: Configuration, tmp_path: Path):
    q = random_tensor(grid)
    artifact, stored = written(q, tmp_path / "m.gguf", np.random.default_rng(1).permutation(OUT))
    y = linear(artifact, stored, configuration, 127 * np.eye(q.shape[1], dtype=np.float32))
    codes = q.codes.astype(np.float64) - q.grid.centre
    zero = np.zeros(1) if q.zero is None else q.zero.astype(np.float64).repeat(q.grid.block, 1)
    products = codes * q.scale.astype(np.float64).repeat(q.grid.block, 1)
    if q.supers is None:
        expected = (127 * (products + zero)).astype(np.float32)  # the sum is exact: at most 51 bits
    else:  # kernels round either term before they add
        expected = (127 * products).astype(np.float32) + (127 * zero).astype(np.float32)
    assert differing(expected.T, y) == 0


def test_dense_block_probes_are_exact(configuration: Configuration, tmp_path: Path):
    """One dense block, sum |x| <= 1024: no partial sum of a q4_0 row can round, in any order."""
    q = random_tensor("q4_0")
    artifact, stored = written(q, tmp_path / "m.gguf")
    rng = np.random.default_rng(2)
    x = np.zeros((4 * (IN // 32), IN), np.float32)
    for row in range(len(x)):
        block = np.append(rng.integers(-28, 29, 31), 127)
        start = row // 4 * 32
        x[row, start : start + 32] = rng.permutation(block) * rng.choice([-1, 1])
    assert np.abs(x).sum(1).max() <= 1024
    expected = (x.astype(np.float64) @ decode(q).astype(np.float64).T).astype(np.float32)
    assert differing(expected, linear(artifact, stored, configuration, x)) == 0


def test_one_changed_code_is_seen(configuration: Configuration, tmp_path: Path):
    q = random_tensor("q4_0")
    artifact, stored = written(q, tmp_path / "a.gguf")
    codes = q.codes.copy()
    codes[17, 300] ^= 1
    other, _ = written(q.replace(codes=codes), tmp_path / "b.gguf")
    x = 127 * np.eye(IN, dtype=np.float32)
    changed = compare_bits(linear(artifact, stored, configuration, x), linear(other, stored, configuration, x))
    assert [tuple(place) for place in np.argwhere(changed)] == [(300, 17)]


def test_rows_that_cannot_be_repacked_are_named(tmp_path: Path):
    q = random_tensor("q4_0", out=63, inputs=64)
    artifact, stored = written(q, tmp_path / "m.gguf")
    repack = next(c for c in RUNTIME.configurations if c.name == "repack")
    with (
        RUNTIME.open(artifact, repack, OPTIONS) as session,
        pytest.raises(RuntimeAbsent, match=r"no repacked layout for q4_0 \[63, 64\]"),
    ):
        session.linear(stored, np.ones((1, 64), np.float32))


def test_every_tensor_of_a_model(storyteller: Session, model_artifact: Artifact):
    """All weights by decode, and each quantized one through the kernel too."""
    for stored in model_artifact.tensors.values():
        q = stored.tensor
        weights = decode(q) if isinstance(q, QTensor) else q
        assert differing(weights, storyteller.weights(stored)) == 0
    for _, stored, q in model_artifact.quantized():
        x = 127 * np.eye(q.shape[1], dtype=np.float32)
        try:
            y = storyteller.linear(stored, x)
        except RuntimeAbsent as absent:
            pytest.skip(absent.cause)
        assert differing(127 * decode(q).T, y) == 0  # 4 + 11 + 7 bits: exact in float32


def test_logits_repeat(model_artifact: Artifact, configuration: Configuration):
    logits = []
    for threads in (1, 1, 2):
        with RUNTIME.open(model_artifact, configuration, RuntimeOptions(LIB, threads)) as session:
            tokens = session.encode(PROMPTS[0])
            list(session.generate([tokens], 3))  # what ran before must not matter
            logits += [session.logits(tokens), session.logits(tokens)]
            session.logits(tokens * 40)  # nor the size of the cache
            logits.append(session.logits(tokens))
    assert logits[0].dtype == np.float32
    assert logits[0].shape == (len(tokens), 4096)
    assert np.ptp(logits[0]) > 1
    assert [differing(logits[0], other) for other in logits[1:]] == [0] * 8


def test_logits_do_not_look_ahead(storyteller: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model, "BATCH", 1)
    tokens = storyteller.encode(PROMPTS[0])
    assert differing(storyteller.logits(tokens), storyteller.logits([*tokens, 99])[:-1]) == 0


def test_logits_see_every_token(storyteller: Session):
    tokens = storyteller.encode(PROMPTS[0])
    other = [tokens[0] + 1, *tokens[1:]]
    assert compare_bits(storyteller.logits(tokens), storyteller.logits(other)).any(1).all()


def test_generate_is_the_argmax_chain(storyteller: Session, monkeypatch: pytest.MonkeyPatch):
    """Token by token on both sides, since kernels for one row and for many may round differently."""
    monkeypatch.setattr(model, "BATCH", 1)
    prompts = [storyteller.encode(text) for text in PROMPTS]
    for prompt, generated in zip(prompts, storyteller.generate(prompts, 24), strict=True):
        chain = storyteller.logits(prompt + generated)[len(prompt) - 1 :].argmax(1).tolist()
        assert chain[: len(generated)] == generated
        assert len(generated) == 24 or chain[len(generated)] == 0  # 0 is this model's end token


def test_generate_does_not_depend_on_company(storyteller: Session):
    prompts = [storyteller.encode(text) for text in PROMPTS]
    together = list(storyteller.generate(prompts, 16))
    assert together == [next(storyteller.generate([prompt], 16)) for prompt in prompts]
    assert [len(next(storyteller.generate([prompts[0]], n))) for n in (0, 1, 5)] == [0, 1, 5]


def test_generate_stops_before_the_end_token(storyteller: Session):
    generated = next(storyteller.generate([storyteller.encode(PROMPTS[0])], 1000))
    assert len(generated) < 1000
    assert 0 not in generated


@pytest.mark.parametrize("text", [*PROMPTS, "", " two  spaces", "naïve — 猫 🐈\n\ttabs", "<|endoftext|> is text"])
def test_tokenizer_round_trip(text: str, storyteller: Session):
    tokens = storyteller.encode(text)
    assert storyteller.decode(tokens) == text
    assert 0 not in tokens  # markup in a prompt is not a special token
    assert storyteller.decode([*tokens, 0]) == text


@pytest.mark.parametrize(
    ("keep", "reason"), [(0, "failed to read magic"), (2000, "key-value"), (-100_000, "file bounds")]
)
def test_damaged_file_is_refused(
    keep: int, reason: str, model_artifact: Artifact, configuration: Configuration, tmp_path: Path
):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model_artifact.path.read_bytes()[:keep])
    artifact = Artifact("gguf", damaged, {}, tmp_path)
    with pytest.raises(Refused, match=reason), RUNTIME.open(artifact, configuration, OPTIONS) as session:
        session.logits([1])


def test_tensor_past_the_end_is_refused(tmp_path: Path):
    artifact, stored = written(random_tensor("q4_0"), tmp_path / "m.gguf")
    whole = artifact.path.read_bytes()
    artifact.path.write_bytes(whole[:-4096])
    with (
        RUNTIME.open(artifact, RUNTIME.configurations[0], OPTIONS) as session,
        pytest.raises(Refused, match=rf"ends at byte \d+, the file at {len(whole) - 4096}"),
    ):
        session.weights(stored)


def test_foreign_requests_are_refused(storyteller: Session):
    with pytest.raises(Refused, match="token 4096 is outside its vocabulary of 4096"):
        storyteller.logits([4096])
    with pytest.raises(Refused, match="empty prompt"):
        storyteller.logits([])
    with pytest.raises(Refused, match=r"no tensor blk\.9\.x"):
        storyteller.weights(Stored(np.zeros((1, 1), np.float32), "blk.9.x"))


def test_absent_library_is_said_not_raised(tmp_path: Path):
    empty = RUNTIME.availability(RuntimeOptions(llama_lib=tmp_path / "nowhere"))
    assert empty.version is None
    assert str(tmp_path / "nowhere") in empty.reason


def test_broken_library_is_said_not_raised(tmp_path: Path):
    (tmp_path / "libllama.so").write_bytes(b"\x7fELF, but no library")
    broken = RUNTIME.availability(RuntimeOptions(llama_lib=tmp_path))
    assert broken.version is None
    assert str(tmp_path) in broken.reason


def test_unknown_struct_layout_is_refused(monkeypatch: pytest.MonkeyPatch):
    loaded = library.load(LIB)
    assert library._context_layout(loaded.c) is loaded.context
    others = [layout for layout in structs.CONTEXT_LAYOUTS if layout is not loaded.context]
    assert others
    monkeypatch.setattr(structs, "CONTEXT_LAYOUTS", others)
    with pytest.raises(RuntimeAbsent, match="lays out its structs"):
        library._context_layout(loaded.c)
    monkeypatch.undo()
    library._context_layout(loaded.c)
