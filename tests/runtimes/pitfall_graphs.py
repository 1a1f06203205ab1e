"""Graphs of one or two nodes that a runtime may compute otherwise than they are written."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUTS, OUT = 1024, 64
BITS = {TensorProto.UINT4: 4, TensorProto.INT8: 8}


def pair(
    block: int = 32, codes: int = TensorProto.UINT4, floats: int = TensorProto.FLOAT, opset: int = 21, version: int = 10
) -> bytes:
    """DequantizeLinear on axis 0, then MatMul."""
    rng, blocks = np.random.default_rng(0), INPUTS // block
    scale = rng.uniform(0.005, 0.015, (blocks, OUT)).astype(np.float16)
    scale = scale if floats == TensorProto.FLOAT16 else scale.astype(np.float32)
    packed = rng.integers(0, 256, INPUTS * OUT * BITS[codes] // 8, dtype=np.uint8)
    tensors = [
        helper.make_tensor("codes", codes, [INPUTS, OUT], packed.tobytes(), raw=True),
        helper.make_tensor("scale", floats, [blocks, OUT], scale.tobytes(), raw=True),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, floats, ["m", size]) for n, size in (("x", INPUTS), ("y", OUT)))
    return model([x], y, nodes, tensors, opset, version)


def rounded() -> bytes:
    """Activations rounded to 8 bits by the graph, times codes of 8 bits in blocks of 32."""
    rng, blocks = np.random.default_rng(0), INPUTS // 32
    scale = rng.uniform(0.005, 0.015, (blocks, OUT)).astype(np.float32)
    tensors = [
        helper.make_tensor("codes", TensorProto.INT8, [INPUTS, OUT], rng.bytes(INPUTS * OUT), raw=True),
        helper.make_tensor("scale", TensorProto.FLOAT, [blocks, OUT], scale.tobytes(), raw=True),
        helper.make_tensor("zero", TensorProto.INT8, [blocks, OUT], bytes(blocks * OUT), raw=True),
    ]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["rounded", "w"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["m", size]) for n, size in (("x", INPUTS), ("y", OUT)))
    return model([x], y, nodes, tensors, 21, 10)


def kernel(level: int, constant: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """MatMulNBits itself, and what it is fed besides x."""
    rng, blocks = np.random.default_rng(0), INPUTS // 32
    codes = rng.integers(0, 256, (OUT, blocks, 16), dtype=np.uint8)
    scale = rng.uniform(0.005, 0.015, (OUT, blocks)).astype(np.float32)
    tensors = [helper.make_tensor("codes", TensorProto.UINT8, codes.shape, codes.tobytes(), raw=True)]
    read = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", INPUTS])]
    if constant:
        tensors.append(helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.tobytes(), raw=True))
    else:
        read.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, scale.shape))
    shape = {"K": INPUTS, "N": OUT, "bits": 4, "block_size": 32, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scale"], ["y"], domain="com.microsoft", **shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", OUT])
    return model(read, made, [node], tensors, 21, 10), {} if constant else {"scale": scale}


def attention() -> bytes:
    """ONNX's own operator, of three tokens in two heads."""
    read = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 3, 8]) for n in "qkv"]
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 8])
    return model(read, made, [helper.make_node("Attention", list("qkv"), ["y"])], [], 23, 11)


def model(read: list[Any], made: Any, nodes: list[Any], tensors: list[Any], opset: int, version: int) -> bytes:
    graph = helper.make_graph(nodes, "g", read, [made], tensors)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    whole: onnx.ModelProto = helper.make_model(graph, opset_imports=domains, ir_version=version)
    return whole.SerializeToString()


def moved(op: str, point: bool) -> bytes:
    """A constant int8 matrix, dequantized, moved by ``op``, added to x; point: whether it has a zero point, of 0."""
    codes = np.array([[12, -45], [7, -3]], np.int8)
    tensors = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(np.float32(0.02), "scale")]
    tensors += [numpy_helper.from_array(np.int8(0), "point")] if point else []
    tensors += [numpy_helper.from_array(np.array([2, 2]), "shape")] if op == "Reshape" else []
    nodes = [
        helper.make_node("DequantizeLinear", [t.name for t in tensors if t.name != "shape"], ["w"]),
        helper.make_node(op, ["w", "shape"] if op == "Reshape" else ["w"], ["moved"]),
        helper.make_node("Add", ["moved", "x"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y"))
    return model([x], y, nodes, tensors, 21, 10)


def gather(size: int, point: int | None, width: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """GatherBlockQuantized of 4 bits in blocks of 32, and the codes and scales of each weight [6, size].

    width: of the type that codes are stored in, uint4 or uint8. Scales are powers of two: what it computes is exact.
    """
    rng, blocks = np.random.default_rng(0), -(-size // 32)
    codes = rng.integers(0, 16, (6, size), dtype=np.uint8)
    scale = np.exp2(rng.integers(-3, 3, (6, blocks))).astype(np.float32)
    points = np.full((6, blocks + blocks % 2), point or 0, np.uint8)
    kind = TensorProto.UINT4 if width == 4 else TensorProto.UINT8

    def packed(name: str, codes: np.ndarray) -> Any:
        raw = codes[:, ::2] | codes[:, 1::2] << 4
        return helper.make_tensor(name, kind, codes.shape if width == 4 else raw.shape, raw.tobytes(), raw=True)

    tensors = [packed("codes", codes), numpy_helper.from_array(scale, "scale")]
    tensors += [] if point is None else [packed("point", points)]
    how = {"block_size": 32, "gather_axis": 0, "quantize_axis": 1} | ({} if width == 4 else {"bits": 4})
    inputs = ["codes", "i", *(t.name for t in tensors[1:])]
    node = helper.make_node("GatherBlockQuantized", inputs, ["y"], domain="com.microsoft", **how)
    ids = helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", size])
    return model([ids], y, [node], tensors, 21, 10), codes, np.repeat(scale, 32, 1)[:, :size]
