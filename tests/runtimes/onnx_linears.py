"""One linear alone on any grid, as the exporter writes it, for the tests of ONNX Runtime's kernels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeqaf import plugins
from edgeqaf.exportoptions import OnnxOptions
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor
from edgeqaf.runs import rows_in
from exporters.onnx import linear, parts, strips
from runtime_tests.onnx.worker import Setting

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def matrix(grid_name: str, shape: tuple[int, int], seed: int = 0) -> QTensor:
    """Random codes, scales and zeros, [out, in]."""
    grid, rng = plugins.find("grids", grid_name), np.random.default_rng(seed)
    blocks = (shape[0], shape[1] // grid.block)

    def halves() -> np.ndarray:
        return (rng.standard_normal(blocks) / 10).astype(np.float16).astype(np.float32)

    codes = rng.integers(grid.lo, grid.hi + 1, shape).astype(np.int8)
    points = rng.integers(grid.lo, grid.hi + 1, blocks).astype(np.float32)
    return QTensor(grid, codes, halves(), {Zero.NONE: None, Zero.CODE: points, Zero.OFFSET: halves()}[grid.zero])


def written(q: QTensor, folder: Path) -> Path:
    """The model ``x [b, m, in] -> y [b, m, out]``; what a session must be told of its data is `beside`."""
    import onnx
    from onnx import TensorProto, helper

    asked, (out, inputs) = OnnxOptions(), q.shape
    stored = parts.parts("w", q.shape, q.grid, "qdq")
    offsets, size = parts.place(stored)
    with open(folder / "data", "xb") as file:
        file.truncate(size)
        strips.write(file.fileno(), strips.Layout("w", q.shape, q.grid, stored, offsets), rows_in(q, "w"))
    inits = list(linear.constants([q.grid]))
    for part in stored:
        tensor = TensorProto(name=part.name, dims=part.shape, data_type=TensorProto.DataType.Value(part.type))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data"), ("offset", offsets[part.name]), ("length", part.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        inits.append(tensor)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "m", d]) for n, d in (("x", inputs), ("y", out)))
    graph = helper.make_graph(list(linear.linear("w", (q.shape, q.grid), "x", "y", asked)), "g", [x], [y], inits)
    ir, opset = (13, 25) if linear.few_bits([q.grid], asked) else (10, 21)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def beside(model: Path) -> Setting:
    return {"folder": str(model.parent), "data": ["data"]}


def runs(loaded) -> Run:
    """As `runtime_tests.onnx.identify` takes a linear that sees its input as it is."""
    return lambda x: (x, loaded.run({"x": x[None]})["y"][0])
