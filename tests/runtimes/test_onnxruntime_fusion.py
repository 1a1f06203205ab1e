"""What ONNX Runtime fuses, what it does not, and that each is seen."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_artifacts import (
    EVERYDAY,
    OPTIONS,
    RUNTIME,
)

from edgeqaf import plugins
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import OnnxOptions
from edgeqaf.grid import Zero
from edgeqaf.protocols import Artifact, Configuration, Stored
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.report import compare_bits

available = RUNTIME.availability(OPTIONS)
pytestmark = pytest.mark.skipif(available.version is None, reason=available.reason)


@pytest.mark.parametrize("configuration", EVERYDAY[1:], ids=lambda c: c.name)
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
