"""What R2 calls certain is the same in every order of float32 sums, also where a kernel keeps codes unsigned."""

import numpy as np
import pytest
from samples import GRIDS

from edgeqaf import plugins
from edgeqaf.digest import Floats
from edgeqaf.grid import Zero
from edgeqaf.protocols import Configuration, Form
from edgeqaf.qtensor import QTensor
from runtime_tests.probes import batches
from runtime_tests.selftest.models import matrix

LEVEL_4 = Configuration("unsigned", int8_activations=True, offset_form=Form.TWO_TERM, split_zero=True)
OFFSETS = [name for name, grid in GRIDS.items() if grid.zero is Zero.OFFSET and grid.levels is None]


def unsigned(q: QTensor, x: Floats, order: np.ndarray) -> Floats:
    """float32 [m, out]: unsigned codes and the middle code, each summed over blocks in ``order``; then the offsets."""
    out, _ = q.shape
    middle = (q.grid.lo + q.grid.hi + 1) // 2
    codes = (q.codes - q.grid.lo).reshape(out, -1, q.grid.block).astype(np.float32)
    blocks = x.reshape(len(x), -1, q.grid.block)
    first, second, third = (np.zeros((len(x), out), np.float32) for _ in range(3))
    centred = q.zero + np.float32(middle) * q.scale
    for b in order:
        total = blocks[:, b].sum(-1, dtype=np.float32)[:, None]
        first += (blocks[:, b] @ codes[:, b].T) * q.scale[:, b]
        second += total * (np.float32(q.grid.lo - middle) * q.scale[:, b])
        third += total * centred[:, b]
    return (first + second) + third


@pytest.mark.parametrize("name", OFFSETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_certain_sum_is_one_of_unsigned_codes_in_any_order(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = matrix(plugins.find("grids", name), (256, 256), rng)
    compared = 0
    for batch in batches(q, LEVEL_4):
        if batch.inputs is not None:
            continue
        for _ in range(4):
            found = unsigned(q, batch.x, rng.permutation(q.scale.shape[1]))
            different = (found + 0).view(np.uint32) != (batch.expected + 0).view(np.uint32)
            assert not (different & batch.certified).any()
        compared += int(batch.certified.sum())
    assert compared > 1000
