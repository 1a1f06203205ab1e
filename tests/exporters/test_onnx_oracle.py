"""ONNX's own vectors of DequantizeLinear, blocked ones too, are what `decode` gives, where they are on a grid of ours."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from edgeqaf import plugins
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor, decode

BITS = {"UINT2": (2, 0, 3), "UINT4": (4, 0, 15), "INT4": (4, -8, 7), "UINT8": (8, 0, 255), "INT8": (8, -128, 127)}
CASES = [case for case in collect_testcases("DequantizeLinear") if case.name.startswith("test_dequantizelinear")]


def carried(case: object) -> bool:
    """Whether the vector has integers of a type of ours, float32 scales, and blocks or one scale for all."""
    node = case.model.graph.node[0]
    types = [onnx.TensorProto.DataType.Name(i.type.tensor_type.elem_type) for i in case.model.graph.input]
    sizes = {a.name: a.i for a in node.attribute}
    return types[0] in BITS and types[1] == "FLOAT" and ("block_size" in sizes or "axis" not in sizes)


@pytest.mark.parametrize("case", [c for c in CASES if carried(c)], ids=lambda c: c.name)
def test_decode_gives_what_onnx_says(case: object) -> None:
    node = case.model.graph.node[0]
    ((inputs, (expected,)),) = case.data_sets
    values = [np.asarray(v if isinstance(v, np.ndarray) else numpy_helper.to_array(v)) for v in inputs]
    codes, scale, *points = (v.astype(np.float32) for v in values)
    sizes = {a.name: a.i for a in node.attribute}
    axis = sizes.get("axis", codes.ndim - 1)
    block = sizes.get("block_size", codes.shape[axis])
    each = (*codes.shape[:axis], codes.shape[axis] // block, *codes.shape[axis + 1 :])
    scale, zero = (np.broadcast_to(v, each) for v in (scale, points[0] if points else np.float32(0)))

    def rows(values: np.ndarray) -> np.ndarray:
        """The axis that has blocks last, as inputs; all others as outputs."""
        moved = np.moveaxis(values, axis, -1)
        return np.ascontiguousarray(moved.reshape(-1, moved.shape[-1]))

    name = onnx.TensorProto.DataType.Name(case.model.graph.input[0].type.tensor_type.elem_type)
    bits, low, high = BITS[name]
    grid = replace(plugins.find("grids", "uint4"), bits=bits, lo=low, hi=high, block=block, zero=Zero.CODE)
    found = decode(QTensor(grid, rows(codes), rows(scale), rows(zero)))
    assert np.array_equal(found.view(np.uint32), rows(np.asarray(expected)).view(np.uint32))


def test_there_are_vectors() -> None:
    found = {c.name for c in CASES if carried(c)}
    assert any("blocked" in name for name in found)
    assert len(found) >= 4, sorted(c.name for c in CASES)
