"""Fully sharded training (torch's FSDP2): each rank holds a part of every float parameter and of its moments.

Codes, scales and zeros are buffers and stay whole on every rank. A block's parameters are gathered while
it computes, so an adapter reads them as ever; between steps they are DTensors, which only this module
and the optimizers meet. Gradients are added up in the order of ranks, as everywhere (`edgeqaf.ranks`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgeqaf import ranks
from edgeqaf.errors import UsageError

SHARD = "EDGEQAF_SHARD"


def take_over() -> None:
    """Shard where the launcher asks accelerate to, which does so on no CPU; its other FSDP options are not read."""
    if os.environ.pop("ACCELERATE_USE_FSDP", "").lower() == "true":
        os.environ[SHARD] = "true"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise UsageError("DeepSpeed is not supported", "launch with --multi_gpu, or with --use_fsdp to shard")


def wanted() -> bool:
    """Whether to shard: ``accelerate launch --use_fsdp``, or EDGEQAF_SHARD=true with torchrun."""
    return ranks.count() > 1 and os.environ.get(SHARD, "").lower() == "true"


def shard(model: nn.Module) -> None:
    """Shard every block of ``model`` by itself, and what is left (embedding, last norm, head) together."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks.count(),))
    blocks = getattr(model, "_no_split_modules", None) or []
    for module in [m for m in model.modules() if type(m).__name__ in blocks]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in _sharded(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_custom_reduce_scatter(_ReduceScatter())
    model.no_sync = lambda: _no_sync(model)  # type: ignore[assignment]  # accelerate looks for DDP's name


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been here."""
    return any(True for _ in _sharded(model))


@contextmanager
def assembled(model: nn.Module) -> Iterator[None]:
    """Within the block the parameters are whole tensors, to be read; nothing for a model that is not sharded."""
    modules = list(_sharded(model))
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()


def whole(value: Any) -> Any:
    """A tensor, or tensors within dicts and lists (an optimizer's state), gathered from all ranks."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def deal(value: Tensor, like: Tensor) -> Tensor:
    """This rank's share of ``value``, as ``like`` is shared; ``value`` itself where ``like`` is whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def deal_state(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """An optimizer's whole ``state_dict`` with every moment shared as its parameter is."""
    if "optimizers" in state:
        return {
            "optimizers": [deal_state(s, o) for s, o in zip(state["optimizers"], optimizer.optimizers, strict=True)]
        }
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, kept in state["state"].items():
        like = parameters[number]
        kept |= {k: deal(v, like) for k, v in kept.items() if isinstance(v, Tensor) and v.shape == like.shape}
    return state


class _ReduceScatter:
    """FSDP's reduce-scatter, added up in the order of ranks."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        got = torch.empty_like(input_tensor)
        dist.all_to_all_single(got, input_tensor, group=group)
        output_tensor.copy_(ranks.in_order(list(got.view(group.size(), -1))).view_as(output_tensor))


@contextmanager
def _no_sync(model: Any) -> Iterator[None]:
    """Keep the gradients of a micro-batch whole on its rank; they are added up with the step's last one."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _sharded(model: nn.Module) -> Iterator[Any]:
    if ranks.count() == 1:
        return iter(())
    from torch.distributed.fsdp import FSDPModule

    return (module for module in model.modules() if isinstance(module, FSDPModule))
