"""PyTorch runs an ONNX program, one operation after the other, on any device.

Every operation here has one right result (`exporters.onnx.exact` says which those are), so another order of
execution, thread count or device must not show. Two of PyTorch's own are not used for that reason: its float32
square root on a CPU is not rounded correctly, and its matrix products may leave out bits, so integers are
multiplied as float64, whose sums of such products are exact.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeqaf.errors import Refused

# UINT32 as int64, since PyTorch shifts no unsigned integers
TYPES = {"FLOAT": torch.float32, "DOUBLE": torch.float64, "INT64": torch.int64, "INT32": torch.int32,
         "UINT32": torch.int64, "UINT8": torch.uint8, "INT8": torch.int8, "BOOL": torch.bool}  # fmt: skip


class Program:
    """A model, its weights on ``device``. Call it with a mapping of inputs for a mapping of all outputs.

    model: a path; or the bytes of a model whose data lies in ``folder``.
    """

    def __init__(self, model: Path | bytes, device: str = "cpu", folder: Path | None = None) -> None:
        import onnx
        from onnx import numpy_helper

        loaded = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
        if folder is not None:
            onnx.load_external_data_for_model(loaded, str(folder))
        self.device = torch.device(device)
        self.graph = loaded.graph
        self._constants = {t.name: self._place(numpy_helper.to_array(t)) for t in loaded.graph.initializer}
        self._last = _last_uses(loaded.graph)
        for node in loaded.graph.node:
            if node.op_type not in OPERATIONS or node.domain:
                raise Refused(f"node {node.name}: the interpreter has no {node.op_type}", "run an exact profile")

    def __call__(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
        values = {**self._constants, **{name: self._place(value) for name, value in inputs.items()}}
        with torch.no_grad():
            for i, node in enumerate(self.graph.node):
                given = [values[name] if name else None for name in node.input]
                made = OPERATIONS[node.op_type](node_attributes(node), *given)
                values.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=True))
                for name in self._last.get(i, ()):
                    del values[name]
        return {output.name: values[output.name] for output in self.graph.output}

    def _place(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)


def node_attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _last_uses(graph: Any) -> dict[int, list[str]]:
    """Node index -> values that no later node reads; outputs and constants stay."""
    stay = {o.name for o in graph.output} | {t.name for t in graph.initializer}
    last: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in [*node.input, *node.output]:
            if name and name not in stay:
                last[name] = i
    ends: dict[int, list[str]] = {}
    for name, i in last.items():
        ends.setdefault(i, []).append(name)
    return ends


def _list(x: Tensor) -> list[int]:
    return [int(n) for n in x.reshape(-1)]


def _cast(a: Mapping[str, Any], x: Tensor) -> Tensor:
    from onnx import TensorProto

    return x.to(TYPES[TensorProto.DataType.Name(a["to"])])


def _slice(
    a: Mapping[str, Any], x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor | None = None
) -> Tensor:
    at = [slice(None)] * x.ndim
    by = [1] * len(axes) if steps is None else _list(steps)
    for start, end, axis, step in zip(_list(starts), _list(ends), _list(axes), by, strict=True):
        at[axis] = slice(start, end, step)
    return x[tuple(at)]


def _reshape(a: Mapping[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    keep = not a.get("allowzero", 0)
    return x.reshape([x.shape[i] if n == 0 and keep else n for i, n in enumerate(_list(shape))])


def _gather(a: Mapping[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    flat = torch.index_select(x, axis, indices.reshape(-1).to(torch.int64) % x.shape[axis])
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(a: Mapping[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    return x[tuple(indices.unbind(-1))]


def _clip(a: Mapping[str, Any], x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def _unsqueeze(a: Mapping[str, Any], x: Tensor, axes: Tensor) -> Tensor:
    wanted = x.ndim + axes.numel()
    for axis in sorted(n % wanted for n in _list(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Mapping[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_list(axes)))


def _shape(a: Mapping[str, Any], x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end", x.ndim)], dtype=torch.int64, device=x.device)


def _quantize(a: Mapping[str, Any], x: Tensor, scale: Tensor, point: Tensor) -> Tensor:
    return torch.clamp(torch.round(x / scale) + point.to(x.dtype), 0, 255).to(torch.uint8)


def _matmul_integer(a: Mapping[str, Any], x: Tensor, w: Tensor, point: Tensor) -> Tensor:
    return torch.matmul(x.to(torch.float64) - point.to(torch.float64), w.to(torch.float64)).to(torch.int32)


def _matmul(a: Mapping[str, Any], x: Tensor, y: Tensor) -> Tensor:
    if x.dtype is not torch.float64:
        raise Refused(f"a MatMul of {x.dtype} is not exact", "run an exact profile")
    return torch.matmul(x, y)


def _reduce_sum(a: Mapping[str, Any], x: Tensor, axes: Tensor) -> Tensor:
    if x.dtype is not torch.float64:
        raise Refused(f"a ReduceSum of {x.dtype} is not exact", "run an exact profile")
    return x.sum(tuple(_list(axes)), keepdim=bool(a.get("keepdims", 1)))


def _sqrt(a: Mapping[str, Any], x: Tensor) -> Tensor:
    return x.to(torch.float64).sqrt().to(x.dtype)


def _mod(a: Mapping[str, Any], x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if a.get("fmod", 0) else torch.remainder(x, y)


def _shift(a: Mapping[str, Any], x: Tensor, by: Tensor) -> Tensor:
    return torch.bitwise_left_shift(x.to(torch.int64), by)


def _split(a: Mapping[str, Any], x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    equal = [x.shape[axis] // a["num_outputs"]] * a["num_outputs"] if lengths is None else _list(lengths)
    return torch.split_with_sizes(x, equal, axis)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation without attributes."""
    return lambda _, *inputs: function(*inputs)


def _expand(a: Mapping[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_list(shape))))


def _reduce_max(a: Mapping[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.amax(tuple(range(x.ndim)) if axes is None else tuple(_list(axes)), bool(a.get("keepdims", 1)))


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "BitShift": _shift,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Div": _plain(torch.div),
    "Equal": _plain(torch.eq),
    "Expand": _expand,
    "Floor": _plain(torch.floor),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "Identity": _plain(lambda x: x),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "Max": _plain(torch.maximum),
    "Min": _plain(torch.minimum),
    "Mod": _mod,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "QuantizeLinear": _quantize,
    "Range": _plain(lambda a, b, c: torch.arange(int(a), int(b), int(c), device=a.device)),
    "ReduceMax": _reduce_max,
    "ReduceSum": _reduce_sum,
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Round": _plain(torch.round),
    "Shape": _shape,
    "Sign": _plain(torch.sign),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _sqrt,
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
