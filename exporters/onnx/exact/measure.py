"""What the exact program has to know of weights: how many digits hold a matrix, and what bounds a layer's values."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeqaf.digest import Floats, Tensor
from edgeqaf.grid import Grid
from edgeqaf.parts import join
from edgeqaf.qtensor import decode
from edgeqaf.runs import Rows, Run, cuts, rows_of
from edgeqaf.source import GEMMAS
from exporters.onnx.exact import digits
from exporters.onnx.exact.products import value_bound
from exporters.onnx.linear import Kind
from exporters.onnx.trace import Traced


def values(run: Run, grid: Grid | None) -> Floats:
    """The weights of some rows."""
    if grid is None:
        assert isinstance(run, np.ndarray)
        return run
    assert isinstance(run, Mapping)
    decoded: Floats = decode(join(grid, run))
    return decoded


def count(name: str, rows: Rows, kind: Kind) -> int:
    """How many digits hold a matrix; raises Refused, by name, for one that needs too many."""
    shape, grid = kind
    if grid is None:
        return digits.FLOAT_DIGITS
    largest = 0.0
    for start, stop in cuts(shape):
        w = values(rows(start, stop), grid)
        largest = max(largest, float((np.abs(w).max(-1) / digits.exact_units(w)).max()))
    return digits.count(largest, name)


def bound(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind], traced: Traced, layer: int
) -> float:
    """A power of two above every value (of attention) in a layer; `products.value_bound` says why."""
    prefix, width = f"model.layers.{layer}.", traced.kv_heads * traced.head_dim
    (attention,) = (n for n in ("v_proj", "qkv_proj") if f"{prefix}self_attn.{n}.weight" in kinds)
    weight = f"{prefix}self_attn.{attention}.weight"
    norm = _whole(tensors, kinds, f"{prefix}input_layernorm.weight")
    factor = np.abs(norm + 1 if config["model_type"] in GEMMAS else norm).max()
    bias = f"{prefix}self_attn.{attention}.bias"
    most = float(np.abs(_whole(tensors, kinds, bias)[-width:]).max()) if bias in kinds else 0.0
    return value_bound(_longest(tensors, kinds, weight, width), float(factor), config["hidden_size"], most)


def _whole(tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind], name: str) -> Floats:
    return values(rows_of(tensors, name)(0, kinds[name][0][0]), kinds[name][1])


def _longest(tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind], name: str, last: int) -> float:
    """The largest Euclidean norm of the last rows of a matrix."""
    shape, grid = kinds[name]
    rows, first = rows_of(tensors, name), shape[0] - last
    runs = (values(rows(first + a, first + b), grid) for a, b in cuts((last, *shape[1:])))
    return max(float(np.sqrt((w.astype(np.float64) ** 2).sum(-1)).max()) for w in runs)
