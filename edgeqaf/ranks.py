"""Several processes that train as one, and how they come to the same bits.

Every rank reads the same base and data, holds the same codes, and takes its share of each step's rows.
What they exchange is added up in the order of ranks, whatever the backend's own order would be:

    sum_(t) = ((t of rank 0 + t of rank 1) + t of rank 2) + ...        on every rank

That is the order in which one process adds up as many micro-batches, so ranks that hold one micro-batch
each do what one process does that gathers them (docs/design/ranks.md).

What fails on one rank ends all of them, by the same error, which one of them prints. Nothing here loads
torch, or does anything, in a process that was started alone.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import gcd
from typing import TYPE_CHECKING, Any, TypeVar

from edgeqaf.errors import Interrupted, UsageError, VerificationFailed

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SMALL = 4096  # entries that are simply sent to everyone


def count() -> int:
    """How many processes train together; what torchrun and accelerate say in the environment."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def first() -> bool:
    """Whether this rank writes and speaks."""
    return rank() == 0


def threads() -> int:
    """CPU threads for this process, where all of one machine's ranks share its cores."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", count())))


def shared(batch: int, accumulate: int) -> tuple[int, int]:
    """(rows, micro-batches) of each rank, so that a step takes batch x accumulate rows however many ranks there are.

    Ranks share out the micro-batches first; what is left, they share by cutting each micro-batch in parts.
    """
    ranks = count()
    parts = ranks // gcd(accumulate, ranks)
    if batch % parts:
        raise UsageError(
            f"{ranks} ranks cannot share steps of {accumulate} micro-batches of {batch} rows",
            f"choose an --accumulate that is a multiple of {ranks}, or a --batch that is one of {parts}",
        )
    return batch // parts, accumulate * parts // ranks


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks; left again at the end, unless the caller had joined before."""
    if count() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    os.environ.setdefault("OMP_NUM_THREADS", str(threads()))  # accelerate would set the threads anew
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            raise
        raise Interrupted(
            "another rank ended, or is out of reach", "see its own message; run the same command with --resume"
        ) from error
    finally:
        if ours:
            dist.destroy_process_group()


@contextmanager
def agreed() -> Iterator[None]:
    """What fails in the block on one rank is raised on all of them: the error of the lowest that has one.

    Where it is another's, it is marked as an ``echo``, which the command line does not print.
    """
    if count() == 1:
        yield
        return
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    for i, theirs in enumerate(gathered(mine)):
        if theirs is not None:
            raise echoed(mine if i == rank() and mine is not None else theirs, i == rank())


def alone(action: Callable[[], T]) -> T:
    """What ``action`` returns on the first rank, which alone runs it; an error of it is raised on all."""
    found: Any = None
    with agreed():
        if first():
            found = action()
    result: T = gathered(found)[0]
    return result


def gathered(value: T) -> list[T]:
    """``value`` of every rank, in order; it must be picklable."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is set on some rank."""
    import torch

    return flag if count() == 1 else bool(sum_(torch.tensor(float(flag))))


def sum_(tensor: "Tensor") -> "Tensor":
    """Add up ``tensor`` over all ranks, in place, in the order of ranks; the same bits on every rank.

    Each rank adds up its share of the entries and sends the result to all: what a ring moves, in a fixed order.
    Two ranks need none of that, as a + b is b + a.
    """
    ranks = count()
    if ranks == 1:
        return tensor
    import torch
    import torch.distributed as dist

    flat = tensor.reshape(-1)
    if ranks == 2:
        dist.all_reduce(flat)
    elif flat.numel() <= SMALL:
        parts = [torch.empty_like(flat) for _ in range(ranks)]
        dist.all_gather(parts, flat)
        flat = in_order(parts)
    else:
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % ranks)) if flat.numel() % ranks else flat
        got = torch.empty_like(padded)
        dist.all_to_all_single(got, padded)
        dist.all_gather(list(padded.view(ranks, -1)), in_order(list(got.view(ranks, -1))))
        flat = padded[: flat.numel()]
    return tensor if flat.data_ptr() == tensor.data_ptr() else tensor.copy_(flat.view_as(tensor))


def in_order(parts: "list[Tensor]") -> "Tensor":
    """((first + second) + third) + ..., into the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def require_same(tensors: "Mapping[str, Tensor]") -> None:
    """Raise VerificationFailed, naming the tensor, unless every rank holds these very bits."""
    if count() == 1:
        return
    found = gathered({name: _digest(tensor) for name, tensor in sorted(tensors.items())})
    for other in range(1, len(found)):
        for name in sorted(found[0].keys() | found[other].keys()):
            if found[0].get(name) != found[other].get(name):
                raise echoed(
                    VerificationFailed(
                        f"{name} differs between rank 0 and rank {other}",
                        "the machines compute differently; train on machines of one kind, with one version of torch",
                    ),
                    first(),
                )


def echoed(error: T, ours: bool) -> T:
    """``error``, marked as another rank's unless it is ``ours``: the command line prints it once."""
    error.echo = not ours  # type: ignore[attr-defined]
    return error


def _digest(tensor: "Tensor") -> str:
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
