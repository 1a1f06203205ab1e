"""t-SignSGD: ternary parameters moved by the sign of their largest gradients.

LoTA-QAF (arXiv 2505.18724, section 3.3):  p <- clip(p - sign(g) * 1[|g| > max(tau, sigma)], -1, 1)

sigma is the percentile of |g|, per tensor, that lets a share ``keep`` of the entries move. The share
falls over the run: linearly from 5 % to 0.1 % over the first 80 % of steps, then 0.01 % (section
4.1), or along a cosine from 5 % to 0.01 %. The released code goes on falling linearly, from 0.1 % to
0.01 %, over the last 20 %. With momentum the sign is that of a running mean of the
gradient, and an entry that moved starts its mean afresh: what it spent is not spent twice.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from edgeqaf.sharding import whole

START, RAMP_END, FLOOR, RAMP = 0.05, 0.001, 0.0001, 0.8


class TSignSGD(torch.optim.Optimizer):
    """steps: length of the run; schedule: "linear" (the paper's) or "cosine"; tau: least |g| that moves.

    There is no learning rate: a ternary entry moves by one or stays.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        steps: int,
        *,
        momentum: float = 0.0,
        schedule: str = "linear",
        tau: float = 1e-9,
    ) -> None:
        defaults = {"lr": 1.0, "steps": steps, "momentum": momentum, "schedule": schedule, "tau": tau}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)
        return loss

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        taken = state.get("step", 0)
        state["step"] = taken + 1
        grad = p.grad
        assert grad is not None
        if group["momentum"]:
            mean = state.setdefault("mean", torch.zeros_like(p))
            grad = mean.mul_(group["momentum"]).add_(grad)
        size = grad.abs()
        share = keep(taken, group["steps"], group["schedule"])
        moving = size > max(group["tau"], threshold(whole(size), share))
        p.sub_(torch.sign(grad) * moving).clamp_(-1, 1)
        if group["momentum"]:
            state["mean"].masked_fill_(moving, 0)


def keep(step: int, steps: int, schedule: str) -> float:
    """The share of entries that may move at ``step`` (from 0) of ``steps``."""
    if schedule == "cosine":
        return FLOOR + (START - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps))
    done = step / (RAMP * steps)
    if done < 1:
        return START + (RAMP_END - START) * done
    if schedule == "released":
        return RAMP_END + (FLOOR - RAMP_END) * (step / steps - RAMP) / (1 - RAMP)
    return FLOOR


def threshold(size: Tensor, share: float) -> float:
    """The value that at most ``share`` of the entries of ``size`` exceeds, and at least one may.

    An order statistic, not an interpolated quantile: it takes any dtype and size, and is exact.
    """
    count = size.numel()
    moving = max(1, round(share * count))
    if moving >= count:
        return 0.0
    return float(torch.kthvalue(size.flatten(), count - moving).values)
