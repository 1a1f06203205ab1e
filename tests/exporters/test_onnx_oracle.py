"""ONNX's own vectors of DequantizeLinear, blocked ones too, are what `decode` gives."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node
from onnx.backend.test.case.node import dequantizelinear  # noqa: F401

from edgeqaf import plugins
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor, decode

BITS = {"UINT2": (2, 0, 3), "INT2": (2, -2, 1), "UINT4": (4, 0, 15), "INT4": (4, -8, 7), "UINT8": (8, 0, 255)}
# An operator's module makes its vectors as it is imported; `collect_testcases` would import those of all operators.
CASES = {c.name: c for c in node._NodeTestCases if c.name.startswith("test_dequantizelinear")}


def type_of(case: Any) -> str:
    return onnx.TensorProto.DataType.Name(case.model.graph.input[0].type.tensor_type.elem_type)


CARRIED = [name for name, case in CASES.items() if type_of(case) in BITS]


@pytest.mark.parametrize("name", CARRIED)
def test_decode_gives_what_onnx_says(name: str) -> None:
    """On a grid of blocks of one weight, each with the scale and zero point that ONNX gives it."""
    case = CASES[name]
    ((inputs, (expected,)),) = case.data_sets
    codes, *parameters = (
        (numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v)).astype(np.float32)
        for v in inputs
    )
    sizes = {a.name: a.i for a in case.model.graph.node[0].attribute}
    axis = sizes.get("axis", 1)

    def each(values: np.ndarray) -> np.ndarray:
        if "block_size" in sizes:
            return values.repeat(sizes["block_size"], axis)[tuple(map(slice, codes.shape))]
        along = [-1 if i == axis else 1 for i in range(codes.ndim)] if values.ndim else ()
        return np.broadcast_to(values.reshape(along), codes.shape)

    bits, low, high = BITS[type_of(case)]
    base = plugins.find("grids", "uint4")
    grid = replace(base, bits=bits, lo=low, hi=high, block=1, zero=Zero.CODE)
    scale, *points = (np.ascontiguousarray(each(v)).reshape(1, -1) for v in parameters)
    zero = points[0] if points else np.zeros_like(scale)
    found = decode(QTensor(grid, codes.reshape(1, -1), scale, zero))
    wanted = np.asarray(expected, np.float32).reshape(1, -1)
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_there_are_vectors_of_blocks_and_of_few_bits() -> None:
    assert "test_dequantizelinear_blocked" in CARRIED
    assert {type_of(CASES[name]) for name in CARRIED} >= {"UINT4", "INT4", "UINT8"}
