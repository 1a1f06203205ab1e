"""What the grids cost: squared error of the quantizer, and ONNX Runtime's time for 2-bit weights.

    python benchmarks/grids.py

The first table: squared error over the weights' own square, on the first 128 rows of seven matrices of
storyteller-6m, with the end-of-grid scale and with the search. The second: one matrix product of
2048 x 2048 weights, one thread, milliseconds, as UINT2 and as UINT4 (median of 20 after one to warm up).
"""

import statistics
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeqaf import plugins
from edgeqaf.qtensor import decode
from edgeqaf.rounding import quantize
from edgeqaf.source import FloatModel

MODEL = Path(__file__).resolve().parents[1] / "examples" / "storyteller-6m"
GRIDS = ("q4_0", "q4_1", "uint4", "q3_0", "q3_1", "uint3", "q2_0", "q2_1", "uint2")
ROWS, SIDE, BLOCK, REPEATS = 128, 2048, 32, 20


def errors() -> None:
    model = FloatModel(MODEL)
    matrices = [model[name][:ROWS] for name in model if name.startswith("model.layers.0.") and model.is_linear(name)]
    print(f"{'squared error':14}" + "".join(f"{name:>8}" for name in GRIDS))
    for title, search in (("end of grid", False), ("searched", True)):
        row = []
        for name in GRIDS:
            grid = plugins.find("grids", name)
            lost = sum(float(((decode(quantize(w, grid, search=search)) - w) ** 2).sum()) for w in matrices)
            row.append(lost / sum(float((w**2).sum()) for w in matrices))
        print(f"{title:14}" + "".join(f"{value:8.4f}" for value in row))


def graph(bits: int) -> bytes:
    """x [n, side] times weights stored with ``bits``, block 32 along the inputs, explicit zero points."""
    kind, each = (TensorProto.UINT2, 4) if bits == 2 else (TensorProto.UINT4, 2)
    rng = np.random.default_rng(0)

    def packed(name: str, shape: list[int]) -> onnx.TensorProto:
        raw = rng.integers(0, 256, int(np.prod(shape)) // each, np.uint8).tobytes()
        return onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=raw)

    scale = numpy_helper.from_array(np.full((SIDE // BLOCK, SIDE), 2.0**-8, np.float32), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    tensors = [packed("codes", [SIDE, SIDE]), scale, packed("zero", [SIDE // BLOCK, SIDE])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIDE]) for name in ("x", "y"))
    whole = helper.make_graph(nodes, "g", [x], [y], tensors)
    opset = helper.make_opsetid("", 25 if bits == 2 else 21)
    made: bytes = helper.make_model(
        whole, opset_imports=[opset], ir_version=13 if bits == 2 else 10
    ).SerializeToString()
    return made


def times() -> None:
    print(f"\n{'level':>5} {'rows':>5} {'UINT2 ms':>9} {'UINT4 ms':>9}")
    for level in (1, 4):
        sessions = []
        for bits in (2, 4):
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
            sessions.append(ort.InferenceSession(graph(bits), options, providers=["CPUExecutionProvider"]))
        for rows in (1, 32):
            x = np.random.default_rng(1).standard_normal((rows, SIDE), np.float32)
            print(f"{level:5} {rows:5}" + "".join(f" {milliseconds(s, x):9.2f}" for s in sessions))


def milliseconds(session: ort.InferenceSession, x: np.ndarray) -> float:
    taken = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        session.run(None, {"x": x})
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[1:])


if __name__ == "__main__":
    errors()
    times()
