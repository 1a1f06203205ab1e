"""What rounding left over: how far the weights of a float model lie from the codes of its base.

A base is integers alone. Where the float model it was quantized from is still at hand, a method may start
from what the rounding lost, in 1/128 of a code step, at most half a step: then the base is still what the
forward computes, and a code that was rounded by a hair moves back at the first hint.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeqaf.errors import Refused
from edgeqaf.nn import QLinear, qlinears
from edgeqaf.packed import Packed
from edgeqaf.qtensor import decode
from edgeqaf.source import FloatModel

PARTS = 128  # of a code step


def residual(base: Packed, weights: Tensor) -> Tensor:
    """int8 [out, in] in [-64, 63]: how far float ``weights`` lie from the base, in 1/128 of a code step.

    It is float32 arithmetic in one written order, elementwise: the same on every machine.
    """
    start = torch.empty(base.shape, dtype=torch.int8, device=base.codes.device)
    for rows in base.tiles():
        q = base.rows(rows)
        scale = q.scale.repeat_interleave(q.grid.block, 1)
        steps = torch.where(scale == 0, 0, (weights[rows].to(scale.device) - decode(q)) / scale)
        start[rows] = (steps * PARTS).round().clamp(-PARTS // 2, PARTS // 2 - 1).to(torch.int8)
    return start


def residuals(model: nn.Module, folder: Path) -> Callable[[QLinear], Tensor]:
    """`residual` of any quantized layer of ``model``, whose float model is at ``folder``.

    What is returned raises Refused for a layer that the float model does not have in this shape.
    """
    floats = FloatModel(folder)
    names = {layer: name for name, layer in qlinears(model).items()}

    def of(layer: QLinear) -> Tensor:
        name, shape = names[layer], (layer.out_features, layer.in_features)
        if name not in floats or floats.shape(name) != shape:
            raise Refused(
                f"{folder} has no {name} of shape {list(shape)}",
                "name the float model that the base was quantized from",
            )
        return residual(layer.base, torch.from_numpy(floats[name]))

    return of
