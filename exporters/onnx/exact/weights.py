"""What the exact program needs of the weights beside the traced program: units, digits and bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Floats
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.source import GEMMAS
from exporters.onnx.exact import digits
from exporters.onnx.exact.products import value_bound


@dataclass(frozen=True)
class Matrix:
    """units: float64 [out]. digits: how many hold its integers. lengths: Euclidean norm of each row."""

    units: NDArray[np.float64]
    digits: int
    lengths: Floats


def measure(name: str, tensor: QTensor | Floats) -> Matrix:
    quantized = isinstance(tensor, QTensor)
    w = decode(tensor) if quantized else tensor
    units = digits.exact_units(w) if quantized else digits.rounded_units(w)
    needed = digits.count(digits.integers(w, units), name)
    return Matrix(units, needed, np.sqrt((w.astype(np.float64) ** 2).sum(-1)))


def bound(model: QModel, layer: int, matrices: Mapping[str, Matrix], kv_width: int) -> float:
    """What the values of a layer stay below; see `products.value_bound`."""
    prefix = f"model.layers.{layer}."
    attention = next(n for n in ("v_proj", "qkv_proj") if f"{prefix}self_attn.{n}.weight" in matrices)
    rows = matrices[f"{prefix}self_attn.{attention}.weight"].lengths[-kv_width:]
    norm = model.tensors[f"{prefix}input_layernorm.weight"]
    factor = np.abs(norm + 1 if model.config["model_type"] in GEMMAS else norm).max()
    bias = model.tensors.get(f"{prefix}self_attn.{attention}.bias", np.zeros(kv_width, np.float32))[-kv_width:]
    return value_bound(rows, float(factor), model.config["hidden_size"], float(np.abs(bias).max()))
