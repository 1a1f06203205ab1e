"""ONNX Runtime elsewhere: what a place owes, in each place there is; what is absent is skipped by name.

The quick ones (another version, WebAssembly) run always, the others in `make slow`.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions
from edgeqaf.qtensor import decode
from edgeqaf.report import Verdict, compare_bits
from edgeqaf.source import FloatModel
from runtime_tests import ladder
from runtime_tests.onnx import places, worker
from runtime_tests.onnx.places import Engine
from runtime_tests.verify import parse_runtimes

EVERY = [name for name in plugins.names("runtimes") if name not in ladder.at_home()]
ELSEWHERE = [name for name in EVERY if plugins.find("runtimes", name).reads == "onnx"]
QUICK_PLACES = ("here", "1.24", "web")
QUICK = {"onnxruntime_1_24": "", "onnxruntime_web": ""}
EXPORTER = plugins.find("exporters", "onnx")
ABSENT_AT_8_BITS = {
    ("onnxruntime_1_24", "fused level 1"): "did not fuse it, it runs DequantizeLinear, MatMul",
    ("onnxruntime_1_24", "fused level 4"): "did not fuse it, it runs DequantizeLinear, MatMul",
    ("onnxruntime_arm", "cortex-a76 fused level 4"): "codes of 8 bits is not known",
}


def marked(value, quick: bool):
    return pytest.param(value, marks=() if quick else pytest.mark.slow, id=str(getattr(value, "name", value)))


def ways() -> list:
    """(runtime, configuration) of every runtime elsewhere, but those of the exact profile: `test_exact_places`."""
    found = [(name, c) for name in ELSEWHERE for c in plugins.find("runtimes", name).configurations if not c.program]
    quick = [name in QUICK and c.name.startswith(QUICK[name]) for name, c in found]
    return [
        pytest.param(*way, marks=() if fast else pytest.mark.slow, id=f"{way[0]} {way[1].name}")
        for way, fast in zip(found, quick, strict=True)
    ]


@pytest.fixture(params=[marked(name, name in QUICK_PLACES) for name in places.names()])
def engine(request: pytest.FixtureRequest, places: Path) -> Iterator[Engine]:
    try:
        place = find(request.param, places)
    except RuntimeAbsent as absent:
        pytest.skip(f"{absent}: {absent.remedy}")
    with place.open() as running:
        yield running


def find(name: str, folder: Path) -> places.Place:
    return places.find(name, folder)


@pytest.fixture(scope="module", params=["q4_0", "q4_1", "q8_0", "uint4"])
def artifact(request: pytest.FixtureRequest, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("dist") / EXPORTER.filename
    source, grid = FloatModel(tiny_float_model), plugins.find("grids", request.param)
    quantize = plugins.find("quantizers", "absmax")
    tensors = {n: quantize(source[n], grid) if source.is_linear(n) else source[n] for n in source}
    EXPORTER.export(QModel(source.config, tensors, tiny_float_model), path)
    return Artifact("onnx", path, EXPORTER.read_back(path), tiny_float_model)


def graph(path: Path, op: str = "Add") -> Path:
    """y = x + x for every type that crosses the pipe, with a tensor in a file of its own."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"float": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "int64": TensorProto.INT64,
             "int32": TensorProto.INT32}  # fmt: skip
    nodes = [helper.make_node(op, [f"x_{k}", f"x_{k}"], [f"y_{k}"]) for k in kinds]
    nodes.append(helper.make_node("Add", ["x_float", "table"], ["z"]))
    read = [helper.make_tensor_value_info(f"x_{k}", kind, ["m", 512]) for k, kind in kinds.items()]
    made = [helper.make_tensor_value_info(f"y_{k}", kind, None) for k, kind in kinds.items()]
    made.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    table = numpy_helper.from_array(np.arange(512, dtype=np.float32), "table")
    model = helper.make_model(
        helper.make_graph(nodes, "g", read, made, [table]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.save(model, path, save_as_external_data=True, location="beside.bin", size_threshold=64)
    return path


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    whole = rng.integers(-(2**30), 2**30, (3, 512))
    return {"x_float": rng.standard_normal((3, 512)).astype(np.float32), "x_double": rng.standard_normal((3, 512)),
            "x_int64": whole, "x_int32": whole.astype(np.int32)}  # fmt: skip


def test_a_place_runs_a_model_with_data_beside_it(engine: Engine, tmp_path: Path):
    """In files and types as given; every value comes back as IEEE arithmetic says."""
    model, given = graph(tmp_path / "m.onnx"), feeds()
    loaded = engine.load(str(model), {"folder": str(tmp_path), "data": ["beside.bin"]})
    assert loaded.inputs.keys() == given.keys()
    made = loaded.run(given)
    for kind in ("float", "double", "int64", "int32"):
        expected = given[f"x_{kind}"] + given[f"x_{kind}"]
        assert made[f"y_{kind}"].dtype == expected.dtype
        assert np.array_equal(made[f"y_{kind}"], expected)
    assert np.array_equal(made["z"], given["x_float"] + np.arange(512, dtype=np.float32))


def test_what_a_worker_refuses_is_told_and_it_goes_on(engine: Engine, tmp_path: Path):
    with pytest.raises(Refused, match="NoSuchOperator"):
        engine.load(str(graph(tmp_path / "bad.onnx", "NoSuchOperator")), {"folder": str(tmp_path), "data": []})
    assert engine.version()


def test_a_worker_that_dies_is_named(places: Path, tmp_path: Path):
    with find("here", places).open() as engine:
        engine._worker.kill()
        with pytest.raises(Refused, match=r"here: the worker died \(exit -9\)"):
            engine.version()


@pytest.mark.parametrize("name", [n for n in places.names() if n != "here"])
def test_an_absent_place_is_named_with_its_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeAbsent, match="no folder of places is named"):
        places.find(name, None)
    with pytest.raises(RuntimeAbsent, match=rf"{tmp_path} has no \S+") as absent:
        places.find(name, tmp_path)
    assert "make places" in absent.value.remedy


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_absent_runtime_is_a_finding_and_never_a_pass(name: str, artifact: Artifact, tmp_path: Path):
    (check,) = ladder.jobs(artifact, {}, [name], RuntimeOptions(places=tmp_path / "nowhere"))
    assert check.verdict is Verdict.ABSENT
    assert "nowhere" in check.detail
    assert "make places" in check.detail


def test_runtimes_elsewhere_are_asked_when_the_user_says_where():
    assert set(parse_runtimes(None, elsewhere=False)).isdisjoint(EVERY)
    assert set(parse_runtimes(None, elsewhere=True)) == set(plugins.names("runtimes"))
    assert parse_runtimes("onnxruntime-1.24", elsewhere=False) == ["onnxruntime_1_24"]


@pytest.mark.parametrize(("name", "configuration"), ways())
def test_every_weight_is_read_back(name: str, configuration: Configuration, artifact: Artifact, places: Path):
    """R1 and R2: exact in every place, but where a version has no kernel for a width, or its order is not known."""
    options = RuntimeOptions(places=places)
    if (absent := plugins.find("runtimes", name).availability(options)).version is None:
        pytest.skip(absent.reason)
    expected = {n: q for n, _, q in artifact.quantized()}
    job = ladder.Job(name, configuration, artifact, expected, options)
    bits = next(iter(expected.values())).grid.bits
    if reason := ABSENT_AT_8_BITS.get((name, configuration.name)) if bits == 8 else None:
        with pytest.raises(RuntimeAbsent, match=reason):
            ladder.climb(job)
        return
    checks = ladder.climb(job).checks
    assert [(c.rung, c.verdict, c.first) for c in checks] == [("R1", Verdict.EXACT, None), ("R2", Verdict.EXACT, None)]


@pytest.mark.parametrize(("name", "configuration"), [w for w in ways() if w.values[1].name.endswith("level 4")])
def test_level_4_rounds_activations_where_its_configuration_says_so(
    name: str, configuration: Configuration, tiny_base: Path, tmp_path: Path, places: Path
):
    """Where no such kernel is, ONNX Runtime computes as at level 1, and says nothing."""
    from edgeqaf import checkpoint

    runtime, options = plugins.find("runtimes", name), RuntimeOptions(places=places)
    if (absent := runtime.availability(options)).version is None:
        pytest.skip(absent.reason)
    EXPORTER.export(checkpoint.load(tiny_base), tmp_path / "onnx")
    artifact = Artifact("onnx", tmp_path / "onnx", EXPORTER.read_back(tmp_path / "onnx"), tiny_base)
    stored = artifact.tensors["model.layers.0.mlp.up_proj.weight"]
    x = np.random.default_rng(0).standard_normal((5, stored.tensor.shape[1])).astype(np.float32)
    level_1 = next(c for c in runtime.configurations if c.name == configuration.name.replace("level 4", "level 1"))
    found = []
    for way in (configuration, level_1):
        with runtime.open(artifact, way, options) as session:
            found.append(session.linear(stored, x))
    assert bool(compare_bits(*found).any()) == configuration.int8_activations
    assert np.abs(found[0] - x @ decode(stored.tensor).T).max() < 0.05 * np.abs(found[1]).max()


@pytest.mark.parametrize("name", [marked(name, name in QUICK) for name in ELSEWHERE])
def test_a_worker_holds_no_more_than_what_is_asked_of_it(name: str, artifact: Artifact, places: Path):
    """However many matrices are asked for: the last of them, and the whole model."""
    runtime, options = plugins.find("runtimes", name), RuntimeOptions(places=places)
    if (absent := runtime.availability(options)).version is None:
        pytest.skip(absent.reason)
    with runtime.open(artifact, runtime.configurations[0], options) as session:
        engine, held = session._load.__self__, set()
        for _, stored, q in artifact.quantized():
            session.weights(stored)
            session.linear(stored, np.ones((1, q.shape[1]), np.float32))
            held.add(engine.holds())
        assert held == {1}
        session.logits([1, 2])
        assert engine.holds() == 2
        session._cut = None
        assert engine.holds() == 1


def test_arrays_cross_the_pipe_as_they_are(tmp_path: Path):
    arrays = {"none": np.zeros((2, 0, 3), np.float32), "scalar": np.array(7, np.int64), "turned": np.eye(3)[:, ::-1],
              "halves": np.arange(4, dtype=np.float16), "bytes": np.frombuffer(pickle.dumps({}), np.uint8)}  # fmt: skip
    with open(tmp_path / "pipe", "wb") as sink:
        worker.write(sink, {"op": "run"}, arrays)
    with open(tmp_path / "pipe", "rb") as source:
        message, found = worker.read(source)
        assert worker.read(source) is None
    assert message["op"] == "run"
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[name], array)
