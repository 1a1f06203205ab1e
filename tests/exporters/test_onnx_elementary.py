"""The written-out functions: right to the last bits, and the same bits in ONNX Runtime and PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from exporters.onnx.exact import elementary
from exporters.onnx.exact.emit import Emit
from runtime_tests.interpreter import Program


def everywhere(low: float, high: float) -> np.ndarray:
    """float32 numbers of every exponent between, and of both signs if low is negative."""
    rng = np.random.default_rng(0)
    spread = np.exp2(rng.uniform(-40, np.log2(high), 50_000))
    signs = rng.choice([-1.0, 1.0], spread.shape) if low < 0 else 1.0
    return np.concatenate([spread * signs, np.linspace(low, high, 50_000), [0.0, low, high]]).astype(np.float32)


def run(write: Callable[[Emit, str, str], Any], x: np.ndarray, folder: Path) -> np.ndarray:
    """What ONNX Runtime computes, at every optimization level, provided PyTorch computes the same bits."""
    emit = Emit()
    emit.scope("y")
    write(emit, "x", "y")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "m"]) for n in ("x", "y")]
    graph = helper.make_graph(emit.nodes, "f", value[:1], value[1:], list(emit.initializers()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "f.onnx").write_bytes(model.SerializeToString())
    expected = Program(folder / "f.onnx")({"x": x})["y"].numpy()
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        (found,) = onnxruntime.InferenceSession(str(folder / "f.onnx"), options).run(None, {"x": x})
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), level
    return expected


def decay(emit: Emit, x: str, out: str) -> None:
    emit("Identity", elementary.decay(emit, x), out=out)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# function -> the true one, where, its largest error: relative, or absolute
CASES: dict[str, tuple[Any, Any, tuple[float, float], tuple[float, float]]] = {
    "decay": (decay, lambda x: np.exp(-x), (0, 21), (2e-6, 0)),  # the product with log2(e) is rounded, up to 2**5
    "sigmoid": (elementary.sigmoid, sigmoid, (-80, 80), (2e-6, 2**-31)),
    "tanh": (elementary.tanh, np.tanh, (-40, 40), (0, 2.5e-7)),
    "gelu": (
        elementary.gelu_tanh, lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        (-8, 8), (0, 2e-6),
    ),
    "reciprocal": (elementary.reciprocal, lambda x: 1 / x, (1e-6, 1e6), (2**-24, 0)),
    "cos": (elementary.cosine, np.cos, (-2e5, 2e5), (2**-24, 2e-9)),
    "sin": (elementary.sine, np.sin, (-2e5, 2e5), (2**-24, 2e-9)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_function(name: str, tmp_path: Path):
    write, true, (low, high), (relative, absolute) = CASES[name]
    x = everywhere(low, high)
    x = x[x != 0] if name == "reciprocal" else x
    found, expected = run(write, x[None], tmp_path)[0].astype(np.float64), true(x.astype(np.float64))
    error = np.abs(found - expected)
    worst = (error - relative * np.abs(expected)).argmax()
    assert error[worst] <= relative * abs(expected[worst]) + absolute, (x[worst], found[worst], expected[worst])


def test_decay_of_nothing_is_one_and_never_more(tmp_path: Path):
    x = everywhere(0, 40)[None]
    y = run(decay, x, tmp_path)
    assert y.max() == 1.0
    assert (y[x == 0] == 1.0).all()
    assert y.min() >= 2.0**-31 * 0.7


@pytest.mark.parametrize("width", [1, 7, 768, 4099])
def test_a_mean_is_right_in_any_order(width: int, tmp_path: Path):
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((5, width)) * np.exp(rng.uniform(-8, 8, (5, width)))).astype(np.float32) ** 2

    def write(emit: Emit, x: str, out: str) -> None:
        elementary.mean(emit, x, width, out)

    found = run(write, x, tmp_path)
    turned = run(write, x[:, ::-1].copy(), tmp_path)
    assert np.array_equal(found, turned)
    expected = x.astype(np.float64).mean(-1, keepdims=True)
    assert (np.abs(found - expected) <= expected * 2.0**-23).all()
