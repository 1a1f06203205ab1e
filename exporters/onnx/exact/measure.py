"""What the exact program has to know of weights: the unit of each row, how many digits hold a matrix, and bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.digest import Floats, Tensor
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.source import GEMMAS
from exporters.onnx.exact import digits
from exporters.onnx.exact.products import value_bound
from exporters.onnx.trace import Traced


@dataclass(frozen=True)
class Matrix:
    """units: float64 [out], powers of two. digits: how many hold its integers. lengths: Euclidean, of its rows."""

    units: NDArray[np.float64]
    digits: int
    lengths: NDArray[np.float64]


def matrix(name: str, tensor: Tensor) -> Matrix:
    """Measure one matrix; raises Refused, by name, for one that needs too many digits."""
    w = values(tensor)
    units = digits.exact_units(w) if isinstance(tensor, QTensor) else digits.rounded_units(w)
    needed = digits.count(digits.integers(w, units), name)
    return Matrix(units, needed, np.sqrt((w.astype(np.float64) ** 2).sum(-1)))


def values(tensor: Tensor) -> Floats:
    return decode(tensor) if isinstance(tensor, QTensor) else tensor


def bound(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], traced: Traced, lengths: Mapping[str, Any], layer: int
) -> float:
    """A power of two above every value (of attention) in a layer; `products.value_bound` says why."""
    prefix, width = f"model.layers.{layer}.", traced.kv_heads * traced.head_dim
    (attention,) = (n for n in ("v_proj", "qkv_proj") if f"{prefix}self_attn.{n}.weight" in tensors)
    rows = lengths[f"{prefix}self_attn.{attention}.weight"][-width:]
    norm = values(tensors[f"{prefix}input_layernorm.weight"])
    factor = np.abs(norm + 1 if config["model_type"] in GEMMAS else norm).max()
    bias = tensors.get(f"{prefix}self_attn.{attention}.bias")
    most = 0.0 if bias is None else float(np.abs(values(bias)[-width:]).max())
    return value_bound(rows, float(factor), config["hidden_size"], most)
