"""How ggml shares a product out: the kernel for twos has a chunk or it has not, and what it has is even."""

from itertools import product

import numpy as np
import pytest

from runtime_tests.ggml.emulate.chunks import CHUNK, in_twos


@pytest.mark.parametrize("outputs", [64, 1376, 128256])
def test_outputs_in_whole_chunks_leave_it_to_the_rows(outputs: int) -> None:
    for rows in range(1, 100):
        found = in_twos(rows, outputs)
        assert (found == found[:, :1]).all()
        if rows % 2 or (CHUNK < rows <= 2 * CHUNK and rows // 2 % 2):
            assert not found.any()
        elif rows <= CHUNK:
            assert found.all()


def test_what_goes_in_twos_is_whole_pairs() -> None:
    for rows, outputs in product(range(1, 60), (1, 2, 30, 31, 64, 72, 100)):
        found = in_twos(rows, outputs)
        assert found.any(1).sum() % 2 == 0
        assert found.any(0).sum() % 2 == 0
        assert np.array_equal(found, np.outer(found.any(1), found.any(0)))


def test_products_known_from_the_library() -> None:
    """18 rows in two chunks of 9; 38 in 13, 13 and 12; 72 outputs in fifteens and a twelve; too few, all at once."""
    assert not in_twos(18, 64).any()
    assert in_twos(38, 64).any(1).tolist() == [False] * 26 + [True] * 12
    assert in_twos(2, 72).any(0).tolist() == [False] * 60 + [True] * 12
    assert in_twos(2, 48).all()
