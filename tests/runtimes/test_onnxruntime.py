"""The ONNX Runtime leaf against the real library: every stored weight through every kernel, exactly."""

import json
import pickle
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused, RuntimeAbsent
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.grid import Zero
from edgeqaf.protocols import Artifact, Configuration, RuntimeOptions, Session, Stored
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import compare_bits
from edgeqaf.source import FloatModel
from runtime_tests.onnx import worker

RUNTIME = plugins.find("runtimes", "onnxruntime")
EXPORTER = plugins.find("exporters", RUNTIME.reads)
FITTING = [name for name in plugins.names("grids") if plugins.find("grids", name).fits(64)]  # the tiny model's rows
GRIDS = [name for name in FITTING if EXPORTER.refuses(plugins.find("grids", name)) is None]
MODELS = ["q4_0", "q4_1", "q8_0"]  # fine enough for whole models: with 2 bits this one's logits are nearly flat
BASE = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
OPTIONS = RuntimeOptions()
LINEAR = "model.layers.0.mlp.up_proj.weight"
PROMPTS = ("Once upon a time there was a little dog named Tim. He", "The old king", "Lily and Ben went to the park")

available = RUNTIME.availability(OPTIONS)
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)


@pytest.fixture(params=RUNTIME.configurations, ids=lambda c: c.name)
def configuration(request: pytest.FixtureRequest) -> Configuration:
    return request.param


def quantized(folder: Path, grid_name: str) -> QModel:
    source, grid, quantize = FloatModel(folder), plugins.find("grids", grid_name), plugins.find("quantizers", "absmax")
    tensors = {n: quantize(source[n], grid) if source.is_linear(n) else source[n] for n in source}
    return QModel(source.config, tensors, folder)


def exported(model: QModel, path: Path) -> Artifact:
    EXPORTER.export(model, path)
    return Artifact(RUNTIME.reads, path, EXPORTER.read_back(path), model.folder)


@pytest.fixture(scope="module", params=MODELS)
def storyteller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(quantized(BASE, request.param), tmp_path_factory.mktemp("dist") / EXPORTER.filename)


@pytest.fixture
def session(storyteller: Artifact, configuration: Configuration) -> Iterator[Session]:
    with RUNTIME.open(storyteller, configuration, OPTIONS) as opened:
        yield opened


@pytest.fixture(scope="module", params=GRIDS)
def tiny(request: pytest.FixtureRequest, tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Fourteen small linears on any grid that the format carries."""
    folder = tmp_path_factory.mktemp("dist")
    return exported(quantized(tiny_float_model, request.param), folder / EXPORTER.filename)


def extreme(grid_name: str, shape: tuple[int, int]) -> QTensor:
    """Any codes, with parameters over all of float16: subnormals, zeros of both signs, both ends."""
    grid = plugins.find("grids", grid_name)
    rng = np.random.default_rng(0)
    blocks = (shape[0], shape[1] // grid.block)

    def halves() -> np.ndarray:
        bits = rng.integers(0, 0x7C00, blocks) | (rng.integers(0, 2, blocks) << 15)
        bits[0, :2] = 0, 0x8000
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    codes = rng.integers(grid.lo, grid.hi + 1, shape).astype(np.int8)
    points = rng.integers(grid.lo, grid.hi + 1, blocks).astype(np.float32)
    return QTensor(grid, codes, halves(), {Zero.NONE: None, Zero.CODE: points, Zero.OFFSET: halves()}[grid.zero])


def read_back(session: Session, stored: Stored, height: int) -> np.ndarray:
    """Every input in turn set to ``height``: [out, in]."""
    return session.linear(stored, np.float32(height) * np.eye(stored.tensor.shape[1], dtype=np.float32)).T


def expected(q: QTensor, height: int) -> np.ndarray:
    """height * weight, rounded once; with a float zero, in the two terms that the graph computes."""

    def wide(parameter: np.ndarray) -> np.ndarray:
        return parameter.repeat(q.grid.block, 1).astype(np.float64)

    if q.grid.zero is not Zero.OFFSET:
        zero = q.grid.centre if q.zero is None else wide(q.zero)
        return ((q.codes.astype(np.float64) - zero) * wide(q.scale) * height).astype(np.float32)
    middle = {15: 8, 7: 4, 3: 2}[q.grid.hi]
    product = ((q.codes.astype(np.float64) - middle) * wide(q.scale) * height).astype(np.float32)
    return product + (wide(q.zero + np.float32(middle) * q.scale) * height).astype(np.float32)


def assert_every_weight_comes_out(session: Session, stored: Stored, int8_activations: bool) -> None:
    q = stored.tensor
    assert isinstance(q, QTensor)
    height = 127 if int8_activations else 1
    found = read_back(session, stored, height)
    if not (int8_activations and q.grid.bits == 8):
        assert compare_bits(expected(q, height), found).sum() == 0
        return
    # This kernel makes the codes unsigned: it adds 128 to them and subtracts 128 * scale * sum(x). The first
    # term has 26 bits and is rounded, so the float is not exact, but it still tells every code from the next.
    scale = q.scale.repeat(q.grid.block, 1).astype(np.float64)
    codes = np.rint(found / np.where(scale == 0, 1, scale * height))
    assert np.array_equal(codes, np.where(scale == 0, 0, q.codes))
    if platform.machine() == "x86_64":  # measured there: no other rounding, with AVX2 and AVX-512 alike
        unsigned = ((q.codes + 128.0) * scale * height).astype(np.float32)
        assert compare_bits(unsigned - (128 * scale * height).astype(np.float32), found).sum() == 0


def test_availability_names_the_version():
    import onnxruntime

    assert available.version == onnxruntime.__version__


def test_every_weight_is_decoded_and_multiplied_exactly(tiny: Artifact, configuration: Configuration):
    with RUNTIME.open(tiny, configuration, OPTIONS) as session:
        for _, stored, q in tiny.quantized():
            assert compare_bits(decode(q), session.weights(stored)).sum() == 0
            assert_every_weight_comes_out(session, stored, configuration.int8_activations)


def test_float_tensors_come_back_as_they_are(session: Session, storyteller: Artifact):
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        stored = storyteller.tensors[name]
        assert compare_bits(stored.tensor, session.weights(stored)).sum() == 0


@pytest.mark.parametrize("grid", GRIDS)
def test_extreme_parameters_are_exact_too(
    grid: str, configuration: Configuration, tiny_float_model: Path, tmp_path: Path
):
    model = quantized(tiny_float_model, grid)
    q = extreme(grid, model.tensors[LINEAR].shape)
    artifact = exported(QModel(model.config, {**model.tensors, LINEAR: q}, model.folder), tmp_path / "onnx")
    stored = artifact.tensors[LINEAR]
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        assert compare_bits(decode(q), session.weights(stored)).sum() == 0
        assert_every_weight_comes_out(session, stored, configuration.int8_activations)


@pytest.mark.parametrize("configuration", [c for c in RUNTIME.configurations if not c.int8_activations], indirect=True)
def test_argmax_is_that_of_pytorch(session: Session, storyteller: Artifact, configuration: Configuration):
    with plugins.find("runtimes", "torch_cpu").open(storyteller, None, OPTIONS) as reference:
        for prompt in PROMPTS:
            ids = session.encode(prompt)
            assert ids == reference.encode(prompt)
            ours, theirs = session.logits(ids), reference.logits(ids)
            assert ours.shape == theirs.shape
            assert ours.dtype == np.float32
            assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("level", ["1", "4"])
def test_the_whole_model_runs_by_fused_kernels(storyteller: Artifact, level: str, tmp_path: Path):
    """The sub-models that `linear` cuts out are fused; so is every linear of the model they come from."""
    assert fused(storyteller, level, "accuracy_level", tmp_path) == [int(level)] * len(list(storyteller.quantized()))


@pytest.mark.parametrize("grid", ["q3_0", "q2_0"])
def test_a_grid_of_few_bits_runs_as_its_twin_among_the_codes_of_q4_0(grid: str, tmp_path: Path):
    """Other code types, another opset, other kernels: the same weights, so the same bits where nothing is fused."""
    model = quantized(BASE, grid)
    q4_0 = plugins.find("grids", "q4_0")
    twins = {name: QTensor(q4_0, q.codes + np.int8(8 - q.grid.centre), q.scale) for name, q in model.quantized()}
    few = exported(model, tmp_path / "few")
    many = exported(QModel(model.config, {**model.tensors, **twins}, BASE), tmp_path / "many")
    with (
        RUNTIME.open(few, RUNTIME.configurations[0], OPTIONS) as first,
        RUNTIME.open(many, RUNTIME.configurations[0], OPTIONS) as second,
    ):
        ids = first.encode(PROMPTS[0])
        assert compare_bits(first.logits(ids), second.logits(ids)).sum() == 0
    for configuration in RUNTIME.configurations[1:]:
        with RUNTIME.open(few, configuration, OPTIONS) as session:
            assert np.isfinite(session.logits(ids)).all()
    assert fused(few, "1", "bits", tmp_path) == [4 if grid == "q3_0" else 2] * len(twins)


def fused(artifact: Artifact, level: str, attribute: str, folder: Path) -> list[int]:
    """An attribute of each fused kernel in the whole model as ONNX Runtime optimizes it."""
    import onnx

    config = {"session.qdq_matmulnbits_accuracy_level": level}
    worker.load(str(artifact.path / "model.onnx"), {"config": config, "optimized": str(folder / "optimized.onnx")})
    nodes = onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node
    return [next(a.i for a in n.attribute if a.name == attribute) for n in nodes if n.op_type == "MatMulNBits"]


def test_generation_is_the_argmax_chain_without_a_cache(session: Session):
    prompts = [session.encode(p) for p in PROMPTS]
    batched = list(session.generate(prompts, 12))
    for prompt, made in zip(prompts, batched, strict=True):
        chain = list(prompt)
        for _ in range(12):
            chain.append(int(session.logits(chain)[-1].argmax()))
        assert made == chain[len(prompt) :]
        assert next(session.generate([prompt], 12)) == made


def test_generation_stops_before_the_end_token(storyteller: Artifact, tmp_path: Path):
    """With the end token set to a word the story uses, the story ends there."""
    copy = Path(shutil.copytree(storyteller.path, tmp_path / "onnx"))
    configuration = RUNTIME.configurations[1]
    with RUNTIME.open(storyteller, configuration, OPTIONS) as session:
        prompt = session.encode(PROMPTS[0])
        whole = next(session.generate([prompt], 8))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [4095, whole[5]]}))
    moved = Artifact("onnx", copy, EXPORTER.read_back(copy), copy)
    with RUNTIME.open(moved, configuration, OPTIONS) as session:
        assert next(session.generate([prompt], 8)) == whole[: whole.index(whole[5])]
        assert session.decode([0, *whole, 0]) == session.decode(whole) != ""


def test_artifact_travels_to_another_process(storyteller: Artifact):
    copy = pickle.loads(pickle.dumps(storyteller))
    assert np.array_equal(copy.tensors[LINEAR].tensor.codes, storyteller.tensors[LINEAR].tensor.codes)


@pytest.mark.parametrize("configuration", RUNTIME.configurations[1:], ids=lambda c: c.name)
def test_a_linear_that_is_not_fused_is_refused(configuration: Configuration, tmp_path: Path):
    """Blocks of 512 are valid ONNX, and ONNX Runtime runs them, but not by its fused kernel."""
    import onnx
    from onnx import TensorProto, helper

    inits = [
        helper.make_tensor("w.codes", TensorProto.UINT4, [512, 2], bytes(512), raw=True),
        helper.make_tensor("w.scale", TensorProto.FLOAT, [1, 2], [1.0, 1.0]),
        helper.make_tensor("w.zero_point", TensorProto.UINT4, [1, 2], b"\x88", raw=True),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", [t.name for t in inits], ["w"], "w/dequantize", axis=0, block_size=512),
        helper.make_node("MatMul", ["x", "w"], ["y"], "w/matmul"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "m", d]) for n, d in (("x", 512), ("y", 2)))
    graph = helper.make_graph(nodes, "g", [x], [y], inits)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx"
    )
    q = QTensor(plugins.find("grids", "q4_0"), np.zeros((2, 512), np.int8), np.ones((2, 16), np.float32))
    artifact = Artifact("onnx", tmp_path, {"w": Stored(q, "w.codes")}, tmp_path)
    with (
        RUNTIME.open(artifact, configuration, OPTIONS) as session,
        pytest.raises(Refused, match=r"w\.codes: ONNX Runtime did not fuse it, it runs .*MatMul"),
    ):
        session.linear(artifact.tensors["w"], np.ones((2, 512), np.float32))


def test_another_architecture_of_the_family_agrees_with_pytorch(tmp_path: Path):
    """Biases, a head of its own, scaled rope, three layers: what the demo model does not have."""
    import torch
    from safetensors.numpy import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 100, "max_position_embeddings": 256,
        "attention_bias": True, "mlp_bias": True, "rope_theta": 10000.0, "eos_token_id": 99,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32},
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig.from_dict(dict(config))).float()
    weights = {n: (torch.randn_like(p) * 0.2).numpy() for n, p in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((BASE / "tokenizer.json").read_bytes())
    artifact = exported(quantized(tmp_path, "q4_1"), tmp_path / "onnx")
    ids = np.random.default_rng(0).integers(0, 99, 60).tolist()
    with (
        plugins.find("runtimes", "torch_cpu").open(artifact, None, OPTIONS) as reference,
        RUNTIME.open(artifact, RUNTIME.configurations[0], OPTIONS) as session,
    ):
        assert np.array_equal(session.logits(ids).argmax(-1), reference.logits(ids).argmax(-1))


def test_a_checkpoint_of_older_transformers_works(tmp_path: Path):
    """Config by transformers 4.41, head stored under its own name, tied."""
    folder = SHARED / "tinystories656k"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} model beside the checkout")
    artifact = exported(quantized(folder, "q4_0"), tmp_path / "onnx")
    with (
        plugins.find("runtimes", "torch_cpu").open(artifact, None, OPTIONS) as reference,
        RUNTIME.open(artifact, RUNTIME.configurations[1], OPTIONS) as session,
    ):
        ids = session.encode(PROMPTS[0])
        assert np.array_equal(session.logits(ids).argmax(-1), reference.logits(ids).argmax(-1))


EVERY = [("qdq", "int8"), ("matmulnbits", "float"), ("matmulnbits", "int8")]
SOME = [name for name in ("q4_0", "q4_1", "q8_0", "q3_0", "q2_0", "uint4", "uint2") if name in GRIDS]


def asked(model: QModel, form: str, activations: str = "float", level: int = 1) -> QModel:
    return replace(model, asked=ExportOptions(onnx=OnnxOptions("everyday", level, form, activations)))


@pytest.mark.parametrize("grid", SOME)
@pytest.mark.parametrize(("form", "activations"), EVERY)
def test_every_form_decodes_and_multiplies_exactly(
    form: str, activations: str, grid: str, configuration: Configuration, tiny_float_model: Path, tmp_path: Path
):
    """Extreme parameters too; probes go past the rounding of activations in the graph."""
    model = quantized(tiny_float_model, grid)
    q = extreme(grid, model.tensors[LINEAR].shape)
    model = QModel(model.config, {**model.tensors, LINEAR: q}, model.folder)
    artifact = exported(asked(model, form, activations), tmp_path / "onnx")
    with RUNTIME.open(artifact, configuration, OPTIONS) as session:
        for _, stored, q in list(artifact.quantized())[:7]:
            assert compare_bits(decode(q), session.weights(stored)).sum() == 0
            assert_every_weight_comes_out(session, stored, configuration.int8_activations)


@pytest.mark.parametrize("grid", SOME)
@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_ends_are_looked_up_and_multiplied_exactly(
    tied: bool, form: str, grid: str, tiny_float_model: Path, tmp_path: Path
):
    """Every row of the embedding, and the head; a tied one by two roads over the same bytes."""
    model = quantized(tiny_float_model, grid)
    shape = model.tensors["model.embed_tokens.weight"].shape
    ends = {"model.embed_tokens.weight": extreme(grid, shape)}
    config = model.config
    if not tied:
        ends["lm_head.weight"] = extreme(grid, shape)
        config = {**config, "tie_word_embeddings": False}
    artifact = exported(asked(QModel(config, {**model.tensors, **ends}, model.folder), form), tmp_path / "onnx")
    for configuration in RUNTIME.configurations[:2]:
        with RUNTIME.open(artifact, configuration, OPTIONS) as session:
            for name, q in ends.items():
                assert compare_bits(decode(q), session.weights(artifact.tensors[name])).sum() == 0
            assert_every_weight_comes_out(session, artifact.tensors[max(ends) if tied else "lm_head.weight"], False)
            if not tied:
                with pytest.raises(RuntimeAbsent, match=r"embed_tokens\.weight is looked up, and never multiplied"):
                    session.linear(artifact.tensors["model.embed_tokens.weight"], np.zeros((1, 64), np.float32))


def ends_quantized(folder: Path, grid: str) -> QModel:
    model = quantized(folder, grid)
    name, kind = "model.embed_tokens.weight", plugins.find("grids", grid)
    q = plugins.find("quantizers", "absmax")(model.tensors[name], kind)
    return QModel(model.config, {**model.tensors, name: q}, model.folder)


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_a_model_with_quantized_ends_agrees_with_pytorch_and_decodes_no_matrix(form: str, tmp_path: Path):
    import onnx

    artifact = exported(asked(ends_quantized(BASE, "q4_0"), form), tmp_path / "onnx")
    with (
        plugins.find("runtimes", "torch_cpu").open(artifact, None, OPTIONS) as reference,
        RUNTIME.open(artifact, RUNTIME.configurations[1], OPTIONS) as session,
    ):
        ids = session.encode(PROMPTS[0])
        assert np.array_equal(session.logits(ids).argmax(-1), reference.logits(ids).argmax(-1))
    assert fused(artifact, "1", "bits", tmp_path) == [4] * len(list(artifact.quantized()))
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    assert "DequantizeLinear" not in {node.op_type for node in nodes}


def test_the_accuracy_level_is_the_operators_own(tmp_path: Path):
    import onnx

    for level in range(5):
        artifact = exported(asked(quantized(BASE, "q4_0"), "matmulnbits", level=level), tmp_path / str(level))
        nodes = onnx.load(artifact.path / "model.onnx", load_external_data=False).graph.node
        found = [{a.name: a.i for a in n.attribute}["accuracy_level"] for n in nodes if n.op_type == "MatMulNBits"]
        assert found == [level] * len(list(artifact.quantized()))


def test_both_forms_give_the_same_logits(tmp_path: Path):
    """At level 1 ONNX Runtime makes of the one what the other is."""
    model = quantized(BASE, "q4_0")
    logits = []
    for form in ("qdq", "matmulnbits"):
        artifact = exported(asked(model, form), tmp_path / form)
        with RUNTIME.open(artifact, RUNTIME.configurations[1], OPTIONS) as session:
            logits.append(session.logits(session.encode(PROMPTS[0])))
    assert compare_bits(*logits).sum() == 0


WIDTHS = {"uint2": (2, 0, 3, 2), "uint4": (4, 0, 15, 8), "int8": (8, -128, 127, 0)}


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("zero", Zero)
@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_every_block_size_type_and_zero_is_fused_at_both_levels_of_optimization(
    form: str, kind: str, zero: Zero, block: int, tmp_path: Path
):
    """As the exporter writes it, of outputs that fill no byte where it can be: checked, fused, and exact."""
    outputs = 260 if (form, kind) == ("qdq", "uint2") else 259
    for optimization, kernels, decoded, found in fused_alone(form, kind, zero, block, outputs, tmp_path):
        assert kernels == [(WIDTHS[kind][0], block)] * (optimization != "ORT_DISABLE_ALL" or form != "qdq")
        if zero is not Zero.OFFSET:
            assert compare_bits(decoded, found).sum() == 0


def test_two_bits_and_outputs_that_fill_no_byte_are_wrong_when_fused(tmp_path: Path):
    """Why the exporter refuses them: ONNX Runtime is right with optimizations off, and wrong with them."""
    wrong = {
        optimization: compare_bits(decoded, found).sum() > 0
        for optimization, _, decoded, found in fused_alone("qdq", "uint2", Zero.NONE, 32, 258, tmp_path)
    }
    assert wrong == {"ORT_DISABLE_ALL": False, "ORT_ENABLE_EXTENDED": True, "ORT_ENABLE_ALL": True}


def fused_alone(
    form: str, kind: str, zero: Zero, block: int, outputs: int, folder: Path
) -> Iterator[tuple[str, list[tuple[int, int]], np.ndarray, np.ndarray]]:
    """One linear at each optimization: its name, (bits, block) of the kernels, the weights, what comes out."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    from edgeqaf.runs import rows_in
    from exporters.onnx import linear, parts, strips

    bits, low, high, centre = WIDTHS[kind]
    base = plugins.find("grids", "q4_0")
    centre = centre if zero is Zero.NONE else 0
    grid = replace(base, bits=bits, lo=low, hi=high, block=block, zero=zero, centre=centre)
    rng, shape = np.random.default_rng(0), (outputs, 3 * block)
    scale, offset = (rng.standard_normal((outputs, 3)).astype(np.float16).astype(np.float32) for _ in range(2))
    points = rng.integers(low, high + 1, (outputs, 3)).astype(np.float32)
    codes = rng.integers(low, high + 1, shape).astype(np.int8)
    q = QTensor(grid, codes, scale, {Zero.NONE: None, Zero.CODE: points, Zero.OFFSET: offset}[zero])
    asked = OnnxOptions(form=form)
    stored = parts.parts("w", shape, grid, form)
    offsets, size = parts.place(stored)
    with open(folder / "data", "xb") as file:
        file.truncate(size)
        strips.write(file.fileno(), strips.Layout("w", shape, grid, stored, offsets), rows_in(q, "w"))
    inits = list(linear.constants([grid]))
    for part in stored:
        tensor = TensorProto(name=part.name, dims=part.shape, data_type=TensorProto.DataType.Value(part.type))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data"), ("offset", offsets[part.name]), ("length", part.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        inits.append(tensor)
    x, y = (helper.make_tensor_value_info(n, 1, ["b", "m", d]) for n, d in (("x", shape[1]), ("y", shape[0])))
    graph = helper.make_graph(list(linear.linear("w", (shape, grid), "x", "y", asked)), "g", [x], [y], inits)
    ir, opset = (13, 25) if linear.few_bits([grid], asked) else (10, 21)
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid(linear.MICROSOFT, 1)] * (form != "qdq")]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=form == "qdq")
    for optimization in ("ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, optimization)
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node
        found = [{a.name: a.i for a in n.attribute} for n in nodes if n.op_type == "MatMulNBits"]
        kernels = [(kernel["bits"], kernel["block_size"]) for kernel in found]
        assert kernels == [] or "DequantizeLinear" not in {n.op_type for n in nodes}
        ones = np.eye(shape[1], dtype=np.float32)[None]
        yield optimization, kernels, decode(q), session.run(None, {"x": ones})[0][0].T
