"""Tuning the codes themselves, with a remainder of one byte a weight.

    c = q + e / 128        q the code, e in [-64, 63] what rounding left over;  weight = decode(q), always

The update is a sign-like descent in units of the grid's own step, normalised by a factored second
moment (Adafactor, arXiv 1804.04235, section 4), with G = dL/dW and s the block's scale:

    g = G s                                              the gradient per code step
    b = min(0.99, 1 - (t + 1)^-0.8)                      t counts the updates of this layer
    v_row = b v_row + (1 - b) mean_in(g^2),  v_col likewise over outputs
    u = clip(g / sqrt(v_row v_col / mean(v_row)), -5, 5)
    c = clip(c - SR(128 lr u) / 128),        q = floor(c + 1/2),  e = 128 (c - q)

SR rounds stochastically. Its noise follows from (seed, layer, update, position) alone (`edgeqaf.noise`),
so a run gives the same codes after a resume and on every rank. No float copy of a weight exists,
at the start or later: e = 0 at step 0, or what rounding the float weights left over (``residual``),
and either way the model is the base.

The update happens inside backward, one layer at a time, so one dL/dW is alive at most. ``groups``
parts of the model's depth take turns: a step updates one of them, which saves the others' dL/dW, and
all of backward below the lowest layer that learns.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from edgeqaf import ranks
from edgeqaf.adapter import Adapter
from edgeqaf.errors import Diverged, UsageError
from edgeqaf.gradient import Flow
from edgeqaf.grid import Slot
from edgeqaf.kernels import accelerated
from edgeqaf.method import Course, Method, Options, parts, warm_hold_decay
from edgeqaf.nn import QLinear, qlinears
from edgeqaf.noise import ROWS, noise
from edgeqaf.packed import Packed, pack, unpack
from edgeqaf.qtensor import Delta, QTensor
from edgeqaf.residual import PARTS, residuals

CLIP = 5.0
FASTEST = 20  # code steps an update: clipped gradients of that rate still fit the int16 of `Codes.move`


class Codes(Adapter):
    """One layer's present codes (packed), remainders and second moments; no parameter of autograd's.

    remainder: int8 [out, in]; v_row [out], v_col [in]: float32; updates: int64, how many so far.
    """

    writes = frozenset({Slot.CODES})
    codes: Tensor
    remainder: Tensor
    v_row: Tensor
    v_col: Tensor
    updates: Tensor

    def __init__(self, base: Packed, seed: int, group: int) -> None:
        super().__init__()
        out, inputs = base.shape
        self.grid, self.seed, self.group, self.name = base.grid, seed, group, "a layer"
        self.register_buffer("codes", base.codes.clone())
        self.register_buffer("remainder", torch.zeros(out, inputs, dtype=torch.int8))
        self.register_buffer("v_row", torch.zeros(out))
        self.register_buffer("v_col", torch.zeros(inputs))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.pace: CodesDescent | None = None
        self.waiting: Tensor | None = None

    def delta(self, q: QTensor, rows: slice) -> Delta:
        """codes: int16 [rows, in], what lies between the base and the present codes."""
        return Delta(codes=unpack(self.codes[rows], self.grid).short() - q.codes)

    def fold_packed(self, base: Packed) -> Packed:
        """The present codes: they are the folded ones, without a copy."""
        return Packed(base.grid, self.codes, base.scale, base.zero)

    def active(self) -> bool:
        return self.pace is not None and self.pace.turn() == self.group

    def gradients(self, layer: QLinear, flow: Flow) -> list[Tensor | None]:
        """Update the codes, or keep the gradient where several micro-batches make a step."""
        assert self.pace is not None
        grad = flow.narrowed().whole_gradient(layer.base.tiles())
        if self.pace.accumulates:
            self.waiting = grad if self.waiting is None else self.waiting.add_(grad)
        else:
            self.update(layer, grad)
        return []

    def update(self, layer: QLinear, grad: Tensor) -> None:
        """One step of the module's equations from dL/dW [out, in], which is overwritten."""
        assert self.pace is not None
        ranks.sum_(grad)
        scale = layer.now.scale
        row, column = self._normalisers(*squares(grad, scale))
        step = self.pace.lr() * PARTS
        move(grad, scale, row * step, column, CLIP * step, self)
        self.updates += 1
        layer.changed()

    def _normalisers(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [out] and [in] whose outer product is 1 / sqrt(v), with this step's means taken into v."""
        keep = min(0.99, 1 - (int(self.updates) + 1) ** -0.8)
        self.v_row.mul_(keep).add_(rows, alpha=1 - keep)
        self.v_col.mul_(keep).add_(columns, alpha=1 - keep)
        tiny = torch.finfo(torch.float32).tiny
        mean = self.v_row.mean().clamp_min(tiny)
        if not bool(mean.isfinite()):
            raise Diverged(f"the gradient of {self.name} is not finite")
        return (self.v_row / mean).clamp_min(tiny).rsqrt(), self.v_col.clamp_min(tiny).rsqrt()

    def _apply(self, fn: Any, recurse: bool = True) -> "Codes":
        """The count of updates stays on the CPU, where Python reads it without waiting for a GPU."""
        updates = self.updates
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.updates = updates
        return self

    def move(self, rows: slice, moves: Tensor) -> None:
        """c <- clip(c - SR(moves) / 128) for some rows; moves: float32 in 1/128 of a code step."""
        moves += noise(self.seed, int(self.updates), rows.start, len(moves), moves.shape[1], moves.device)
        value = unpack(self.codes[rows], self.grid).short().mul_(PARTS).add_(self.remainder[rows]).add_(PARTS // 2)
        value.sub_(moves.floor_().short()).clamp_(self.grid.lo * PARTS, self.grid.hi * PARTS + PARTS - 1)
        self.remainder[rows] = value.to(torch.int8).bitwise_and_(PARTS - 1).sub_(PARTS // 2)
        self.codes[rows] = pack(value.bitwise_right_shift_(int(math.log2(PARTS))).to(torch.int8), self.grid)


@accelerated
def squares(grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Means of (grad * scale)^2: float32 [out], over the inputs, and [in], over the outputs.

    grad: float32 [out, in]; scale: float32 [out, in / block].
    """
    rows, columns = grad.new_empty(grad.shape[0]), grad.new_zeros(grad.shape[1])
    for first in range(0, len(grad), ROWS):
        part, own = grad[first : first + ROWS], scale[first : first + ROWS]
        square = (part.view(*own.shape, -1) * own[..., None]).square_().view_as(part)
        rows[first : first + ROWS] = square.mean(1)
        columns += square.sum(0)
    return rows, columns / len(grad)


@accelerated
def move(grad: Tensor, scale: Tensor, row: Tensor, column: Tensor, limit: float, part: Codes) -> None:
    """c <- clip(c - SR(clip(grad scale row column, -limit, limit)) / 128), in place in ``part``.

    grad: float32 [out, in], which is overwritten; scale: float32 [out, in / block]; row, column: float32 [out], [in].
    """
    for first in range(0, len(grad), ROWS):
        rows = slice(first, first + ROWS)
        moves = grad[rows]
        moves.view(*scale[rows].shape, -1).mul_(scale[rows, :, None])
        part.move(rows, moves.mul_(row[rows, None]).mul_(column).clamp_(-limit, limit))


class CodesDescent(torch.optim.Optimizer):
    """Paces the updates that happen inside backward: learning rate, step count and whose turn it is."""

    def __init__(self, model: nn.Module, lr: float, course: Course, groups: int) -> None:
        found = parts(model, Codes)
        # No parameter is autograd's; one of the model's device stands for them.
        super().__init__([torch.zeros((), device=found[0][0].codes.device)], {"lr": lr, "step": 0})
        self.groups, self.accumulates, self.parts = groups, course.accumulate > 1, found
        for _, part in self.parts:
            part.pace = self

    def lr(self) -> float:
        return float(self.param_groups[0]["lr"])

    def turn(self) -> int:
        """Which part of the depth learns at this step, from the top down."""
        return self.groups - 1 - int(self.param_groups[0]["step"]) % self.groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take what waits where micro-batches were gathered, and count the step."""
        for layer, part in self.parts:
            if part.waiting is not None:
                part.update(layer, part.waiting)
                part.waiting = None
        self.param_groups[0]["step"] += 1


class CodesOptions(Options):
    """lr: code steps per update; 0.03 keeps most of what the base knows, 0.1 learns a task faster.

    None is 0.03 for up to 300 steps, and 0.03 sqrt(300 / steps) beyond, not below 0.003.
    groups: parts of the depth that take turns, one a step; the rate is multiplied by it.
    residual: folder of the float model that the base was quantized from, for remainders that rounding left over.
    """

    lr: float | None = Field(None, gt=0, le=8, allow_inf_nan=False)
    groups: int = Field(1, ge=1)
    residual: str = ""


class CodesMethod(Method):
    """See the module's docstring."""

    options = CodesOptions

    def prepare(self, model: nn.Module, options: Any) -> None:
        """Divide the depth into ``groups`` parts."""
        depths = {name: int(found[1]) if (found := re.search(r"\.(\d+)\.", name)) else 0 for name in qlinears(model)}
        for name, layer in qlinears(model).items():
            for part in layer.adapter.modules():
                if isinstance(part, Codes):
                    part.name, part.group = name, depths[name] * options.groups // (max(depths.values()) + 1)

    def begin(self, model: nn.Module, options: Any) -> None:
        """Take the remainders from the float model, once, at the start of a run; an adapter file has its own."""
        if options.residual:
            left_over = residuals(model, Path(options.residual))
            for layer, part in parts(model, Codes):
                part.remainder.copy_(left_over(layer))

    def layer(self, base: Packed, options: Any, generator: torch.Generator) -> Codes:
        return Codes(base, int(torch.randint(2**31, (), generator=generator)), 0)

    def optimizer(self, model: nn.Module, options: Any, course: Course) -> tuple[torch.optim.Optimizer, LambdaLR]:
        lr = options.lr if options.lr is not None else max(0.003, 0.03 * min(1.0, 300 / course.steps) ** 0.5)
        if lr * options.groups > FASTEST:
            raise UsageError(
                f"codes: lr={lr} times groups={options.groups} is more than {FASTEST} code steps an update",
                "lower --lr; useful rates are 0.01 to 0.2",
            )
        descent = CodesDescent(model, lr * options.groups, course, options.groups)
        return descent, warm_hold_decay(descent, course.steps)


adapter = CodesMethod()
