"""Which rows each step takes, whatever the number of ranks.

Every epoch is one permutation of all items, from (seed, epoch), cut into steps of ``batch x accumulate``; the
last step of an epoch takes what is left. Ranks share a step's micro-batches, or, where there are fewer of
them than ranks, parts of each. So the last step may have nothing for some micro-batch: it is empty then.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.utils.data import Sampler

from edgeqaf import ranks


class Order(Sampler[list[int]]):
    """Every micro-batch of this rank, through the whole run.

    items: how many there are to train on; rows, micro: of each rank, as `edgeqaf.ranks.shared` gives them.
    """

    def __init__(self, items: int, steps: int, rows: int, micro: int, seed: int) -> None:
        self.items, self.steps, self.rows, self.micro, self.seed = items, steps, rows, micro, seed
        self.permutation = lru_cache(2)(self._permutation)

    def __len__(self) -> int:
        return self.steps * self.micro

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(step, i, ranks.rank()) for step in range(self.steps) for i in range(self.micro))

    def batch(self, step: int, micro: int, rank: int) -> list[int]:
        """Items of one micro-batch of one rank; all three counted from 0."""
        whole = self.rows * self.micro * ranks.count()
        epoch, turn = divmod(step, -(-self.items // whole))
        first = turn * whole + (micro * ranks.count() + rank) * self.rows
        return self.permutation(epoch)[first : first + self.rows]

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        found: list[int] = torch.randperm(self.items, generator=generator).tolist()
        return found
