"""Every pitfall that was seen is seen again, in versions that its entry names; where it is gone, the table is wrong."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import WAYS, tiny
from pitfall_graphs import INPUTS, attention, gather, kernel, model, moved, pair, rounded

from edgeqaf import plugins
from edgeqaf.errors import Refused, RuntimeAbsent
from exporters.onnx import exporter
from runtime_tests.golden.isa import machine
from runtime_tests.onnx import places
from runtime_tests.onnx.places import Engine
from runtime_tests.pitfalls import PITFALLS, Case, of

LEVEL_1 = {"config": {"session.qdq_matmulnbits_accuracy_level": "1"}}
OFF = {"level": "off"}


@pytest.fixture
def at(places: Path) -> Iterator[Callable[[str], Engine]]:
    """Opens a place, or skips the test, naming what is absent."""
    from contextlib import ExitStack

    with ExitStack() as opened:

        def open_place(name: str) -> Engine:
            try:
                return opened.enter_context(find(name, places).open())
            except RuntimeAbsent as absent:
                pytest.skip(f"{absent}: {absent.remedy}")

        yield open_place


def find(name: str, folder: Path) -> places.Place:
    return places.find(name, folder)


def run(engine: Engine, graph: bytes, setting: Any, rows: int = 5, **more: np.ndarray) -> np.ndarray:
    """y for the same random x, float32."""
    given = np.random.default_rng(1).standard_normal((rows, INPUTS)).astype(more.pop("dtype", np.float32))
    result: np.ndarray = engine.load(graph, setting).run({"x": given, **more})["y"]
    return result.astype(np.float32)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, by the largest value expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def default_level_4(at):
    for name in ("1.24", "here", "1.32"):
        engine = at(name)
        expected = run(engine, pair(), OFF)
        assert error(run(engine, pair(), LEVEL_1), expected) < 1e-5 < 1e-3 < error(run(engine, pair(), {}), expected)


def level_4_in_float32(at):
    for name in ("web", "sse", "avx", "cortex-a72"):
        engine = at(name)
        assert np.array_equal(run(engine, pair(), {}), run(engine, pair(), LEVEL_1))


def eight_bits_unfused(at):
    graph = pair(codes=TensorProto.INT8)
    for name, fused in (("1.24", False), ("here", True), ("1.32", True)):
        engine = at(name)
        assert (error(run(engine, graph, {}), run(engine, graph, OFF)) > 1e-3) == fused


def eight_bit_activations(at):
    for name in ("1.24", "here", "1.32"):
        engine = at(name)
        assert np.array_equal(run(engine, rounded(), OFF), run(engine, rounded(), {"level": "basic"}))
        for level in ("extended", "all"):
            with pytest.raises(Refused, match="while running DynamicQuantizeMatMul node"):
                run(engine, rounded(), {"level": level})


def eight_bits_on_dot_products(at):
    """One input of 127 is divided by 1 and multiplied by one weight: nothing needs to round."""
    x = np.zeros((5, INPUTS), np.float32)
    x[:, 7] = 127
    exact = at("here").load(pair(codes=TensorProto.INT8), OFF).run({"x": x})["y"]
    for name, off in (("cortex-a76", 1e-7), ("armv9", 0)):
        found = at(name).load(pair(codes=TensorProto.INT8), {}).run({"x": x})["y"]
        assert 1e-4 > error(found, exact) >= off


def block_512_zeros(at):
    engine = at("1.24")
    assert np.abs(run(engine, pair(512), OFF)).max() > 1
    assert not run(engine, pair(512), {}).any()


def block_512_refused(at):
    fusing = {"config": {"session.enable_dq_matmulnbits_fusion": "1"}}
    with pytest.raises(Refused, match="Exception during initialization"):
        run(at("here"), pair(512), fusing)
    newer = at("1.32")
    assert error(run(newer, pair(512), fusing), run(newer, pair(512), OFF)) < 0.02


def scales_not_constant(at):
    for name in ("1.24", "here", "1.32"):
        engine = at(name)
        graph, scale = kernel(4, constant=False)
        right = run(engine, kernel(4, constant=True)[0], {})
        assert np.abs(right).max() > 1
        assert not (np.abs(run(engine, graph, {}, **scale) - right) < 1).all()  # memory as it was found, often zeros
        graph, scale = kernel(1, constant=False)
        assert np.abs(run(engine, graph, {}, **scale)).max() > 1


def float16_extended(at):
    graph = pair(floats=TensorProto.FLOAT16)
    for name in ("here", "1.32"):
        engine = at(name)
        expected = run(engine, graph, OFF, dtype=np.float16)
        found = run(engine, graph, {"level": "extended"}, dtype=np.float16)
        assert not (np.abs(found.astype(np.float32) - expected) < 0.1).all()
        assert error(run(engine, graph, {"level": "all"}, dtype=np.float16), expected) < 0.02


def opset_27(at):
    for name in ("1.24", "here"):
        engine = at(name)
        for graph in (pair(opset=27), pair(version=14)):
            with pytest.raises(Refused):
                run(engine, graph, OFF)
    assert run(at("1.32"), pair(opset=27), OFF).any()


def openvino_rounds(at):
    expected = run(at("here"), pair(), OFF)
    assert error(run(at("openvino-float32"), pair(), {}), expected) < 1e-5
    found = error(run(at("openvino-dynamic"), pair(), {}), expected)
    assert found > 1e-3 if "vnni" in machine() else found < 1e-5


def openvino_divides(at):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["m", INPUTS]) for n in ("x", "y"))
    d = helper.make_tensor_value_info("d", TensorProto.FLOAT, ["m", 1])
    graph = model([x, d], y, [helper.make_node("Div", ["x", "d"], ["y"])], [], 21, 10)
    divisor = np.random.default_rng(2).uniform(1, 2, (5, 1)).astype(np.float32)
    given = np.random.default_rng(1).standard_normal((5, INPUTS)).astype(np.float32)
    assert np.array_equal(run(at("here"), graph, {}, d=divisor), given / divisor)
    assert not np.array_equal(run(at("openvino-float32"), graph, {}, d=divisor), given / divisor)


def openvino_attention(at):
    assert at("here").load(attention(), {}).run(dict.fromkeys("qkv", np.ones((1, 2, 3, 8), np.float32)))["y"].all()
    with pytest.raises(Refused, match="OpenVINO"):
        at("openvino-float32").load(attention(), {})


def openvino_contracts(at):
    """x * d + x, rounded twice or once; and (x + 3072) - 3072, which is x on a grid, or x."""
    read = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [5, INPUTS]) for n in ("x", "d")]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, INPUTS])
    once = [helper.make_node("Mul", ["x", "d"], ["p"]), helper.make_node("Add", ["p", "x"], ["y"])]
    gone = [
        helper.make_node("Add", ["x", "b"], ["p"]), helper.make_node("Sub", ["p", "b"], ["q"]),
        helper.make_node("Mul", ["q", "d"], ["y"]),
    ]  # fmt: skip
    d, x = (np.random.default_rng(seed).standard_normal((5, INPUTS)).astype(np.float32) for seed in (2, 1))
    large = np.float32(3072)
    for nodes, expected in ((once, x * d + x), (gone, ((x + large) - large) * d)):
        graph = model(read, y, nodes, [helper.make_tensor("b", TensorProto.FLOAT, [], [large])], 21, 10)
        assert np.array_equal(run(at("here"), graph, {}, d=d), expected)
        assert not np.array_equal(run(at("openvino-float32"), graph, {}, d=d), expected)


def int8_moved(at):
    x = {"x": np.zeros((2, 2), np.float32)}
    for name, wrong in (("1.24", True), ("openvino-float32", True), ("here", False), ("1.32", False)):
        engine = at(name)
        for op in ("Reshape", "Transpose"):
            for point in (True, False):
                graph = moved(op, point)
                expected = engine.load(graph, OFF).run(x)["y"]
                assert expected.min() < -0.5
                found = engine.load(graph, {}).run(x)["y"]
                assert np.array_equal(found, np.maximum(expected, 0) if wrong and not point else expected)
    engine = at("webgpu")
    assert engine.load(moved("Reshape", point=False), {}).run(x)["y"].min() == np.float32(0.02) * -45
    with pytest.raises(Refused, match=r"does not match expected type \(tensor\(uint8\)\)"):
        engine.load(moved("Transpose", point=False), OFF)


def gather_first_run(at):
    """With a zero point all are right, also for rows that do not divide into blocks, which is said of CUDA only."""
    for name in ("here", "1.24", "1.32", "web", "webgpu"):
        for first, second in ((4, 8), (8, 4)):
            engine = at(name)
            taken = {4: 0, 8: 8} if name != "webgpu" else dict.fromkeys((4, 8), 0 if first == 4 else 8)
            held = []  # its programs live as long as a model that has them
            for width, size, point in ((first, 64, None), (second, 64, None), (first, 48, 8), (second, 48, 8)):
                graph, codes, scale = gather(size, point, width)
                held.append(engine.load(graph, {}))
                found = held[-1].run({"i": np.arange(len(codes))})["y"]
                assert np.array_equal(found, (codes - np.float32(point or taken[width])) * scale)


SHOWN = {
    "default-level-4": default_level_4, "level-4-in-float32": level_4_in_float32, "8-bit-unfused": eight_bits_unfused,
    "8-bit-on-dot-products": eight_bits_on_dot_products, "8-bit-activations": eight_bit_activations,
    "block-512-zeros": block_512_zeros, "block-512-refused": block_512_refused,
    "scales-not-constant": scales_not_constant, "float16-extended": float16_extended, "opset-27": opset_27,
    "int8-moved": int8_moved, "gather-first-run": gather_first_run,
    "openvino-rounds": openvino_rounds, "openvino-contracts": openvino_contracts,
    "openvino-attention": openvino_attention, "openvino-divides": openvino_divides,
}  # fmt: skip


def test_what_was_seen_has_a_test_and_what_was_not_has_none():
    assert {p.name for p in PITFALLS if p.seen} == SHOWN.keys()
    assert len({p.name for p in PITFALLS}) == len(PITFALLS)


@pytest.mark.parametrize("name", SHOWN)
def test_it_is_still_there(name: str, at: Callable[[str], Engine]):
    SHOWN[name](at)


def names(runtime: str, version: str, configuration: str, grid: str) -> set[str]:
    return {p.name for p in of(Case(runtime, version, configuration, frozenset({plugins.find("grids", grid)})))}


def test_a_run_is_told_of_what_concerns_it_and_of_nothing_else():
    assert names("onnxruntime", "1.31.1", "fused level 4", "q4_0") == {"default-level-4"}
    assert names("onnxruntime", "1.31.1", "off", "q4_0") == set()
    assert names("onnxruntime", "1.23.2", "fused level 4", "q4_0") == {"default-level-4", "nbits-parity"}
    assert names("onnxruntime", "1.23.2", "fused level 1", "q4_0") == set()
    assert names("onnxruntime_x86", "1.31.1", "avx2 fused level 4", "q4_0") == {"default-level-4"}
    assert names("onnxruntime_x86", "1.31.1", "avx fused level 4", "q4_0") == {"level-4-in-float32"}
    assert names("onnxruntime_arm", "1.31.1", "cortex-a72 fused level 4", "q4_0") == {"level-4-in-float32"}
    assert "8-bit-unfused" in names("onnxruntime_1_24", "1.24.4", "fused level 1", "q8_0")
    assert "avx2-one-row" in names("onnxruntime_1_24", "1.24.4", "fused level 4", "uint4")
    assert names("onnxruntime_openvino", "1.24.1", "openvino-float32 whole", "q4_0") == {
        "openvino-divides",
        "openvino-attention",
    }
    assert (
        names("onnxruntime_1_24", "1.24.4", "exact", "q8_0") == names("onnxruntime", "1.29.0", "exact", "q4_0") == set()
    )
    for place in ("openvino-float32", "openvino-dynamic"):
        found = names("onnxruntime_openvino", "1.24.1", f"{place} exact", "q4_0")
        assert found == {"openvino-divides", "openvino-contracts"}
    assert names("torch_cpu", "2.13.0", "float32", "q8_0") == names("llama_cpp", "", "plain", "q8_0") == set()


@pytest.mark.parametrize(("grid", "form", "activations"), WAYS)
def test_no_artifact_dequantizes_without_a_zero_point(grid: str, form: str, activations: str, tmp_path: Path):
    """`int8-moved` and the entries of GatherBlockQuantized concern none."""
    exporter.export(tiny(tmp_path, grid, "untied", form=form, activations=activations), tmp_path / "onnx")
    nodes = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph.node
    inputs = [len(node.input) for node in nodes if node.op_type == "DequantizeLinear"]
    assert set(inputs) == (set() if (form, activations) == ("matmulnbits", "float") else {3})
    assert "GatherBlockQuantized" not in {node.op_type for node in nodes}
