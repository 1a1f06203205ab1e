"""Probes spell weights out: no two tuples of weights give one answer, and a wrong answer names the weight."""

from itertools import product

import numpy as np
import pytest
from samples import GRIDS, random_tensor

from edgeqaf.grid import Zero
from edgeqaf.protocols import Configuration, Form
from edgeqaf.qtensor import QTensor, decode
from runtime_tests import probes
from runtime_tests.probes import BUDGET, FEWEST, HEIGHT, batches, culprit, heights

KERNELS = {
    "floats": Configuration("floats", int8_activations=False, offset_form=Form.DECODED),
    "8 bits": Configuration("8 bits", int8_activations=True, offset_form=Form.FUSED),
    "split": Configuration("split", int8_activations=True, offset_form=Form.TWO_TERM, split_zero=True),
    "exact": Configuration("exact", int8_activations=False, offset_form=Form.DECODED, exact_sums=True),
}
CASES = [(grid, kernel) for grid in GRIDS for kernel in KERNELS]


def half_of_all_sums(values: range, high: tuple[int, ...]) -> np.ndarray:
    """Sums of heights * values over all tuples of values."""
    sums = np.zeros(1, np.int64)
    for height in high:
        sums = (sums[:, None] + height * np.arange(values.start, values.stop)).ravel()
    return sums


@pytest.mark.parametrize(("grid", "kernel"), CASES, ids="-".join)
def test_no_two_tuples_of_weights_have_one_answer(grid: str, kernel: str) -> None:
    """All of them, where a zero point is any that the grid has; on a grid with several numbers, one input alone."""
    kind, high = GRIDS[grid], heights(GRIDS[grid], KERNELS[kernel])
    assert (high[0] == HEIGHT) == (kernel != "floats") or high == (1,)
    assert sum(high) * (kind.hi - kind.lo) <= BUDGET or len(high) == 1
    below = kind.hi if kind.zero is Zero.CODE else kind.centre
    above = kind.lo if kind.zero is Zero.CODE else kind.centre
    sums = half_of_all_sums(range(kind.lo - below, kind.hi - above + 1), high)
    assert len(np.unique(sums)) == len(sums)


@pytest.mark.parametrize(("grid", "kernel"), CASES, ids="-".join)
def test_every_weight_is_read_once_and_answers_are_what_integers_give(grid: str, kernel: str) -> None:
    q = random_tensor(GRIDS[grid], out=5, blocks=3 if GRIDS[grid].unit < 256 else 2)
    read = []
    for batch in batches(q, KERNELS[kernel]):
        assert len(batch.x) >= FEWEST
        if batch.inputs is None:
            continue
        read += batch.inputs[batch.inputs >= 0].tolist()
        if len(heights(q.grid, KERNELS[kernel])) > 1:  # nothing rounds: float64 has all bits
            exact = batch.x.astype(np.float64) @ decode(q).astype(np.float64).T
            assert (batch.expected == exact).all()
    assert sorted(read) == list(range(q.shape[1]))


@pytest.mark.parametrize(("grid", "kernel"), CASES, ids="-".join)
def test_a_wrong_code_is_named_whatever_it_is(grid: str, kernel: str) -> None:
    """Every other code in every place of a digit, answered as the kernel would."""
    q = random_tensor(GRIDS[grid], out=3, blocks=2 if GRIDS[grid].unit < 256 else 1)
    q = q.replace(scale=np.where(q.scale == 0, np.float32(1), q.scale)) if q.supers is None else q
    each = -(-q.grid.block // len(heights(q.grid, KERNELS[kernel])))
    right = list(batches(q, KERNELS[kernel]))
    for column, other in product(range(0, q.grid.block, each), range(q.grid.lo, q.grid.hi + 1)):
        if other == q.codes[1, column] or (q.supers is not None and not q.scale[1, column // q.grid.block]):
            continue
        codes = q.codes.copy()
        codes[1, column] = other
        damaged = QTensor(q.grid, codes, q.scale, q.zero, q.supers)
        for batch, answer in zip(right, batches(damaged, KERNELS[kernel]), strict=True):
            different = batch.expected != answer.expected
            if batch.inputs is None or not different.any():
                continue
            ((row, out),) = np.argwhere(different)
            assert culprit(batch, q, answer.expected, int(row), int(out)) == (1, column)
            break
        else:
            pytest.fail(f"code {other} at {column} changed no answer")


def test_a_probe_at_a_time_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are cut for memory only."""
    q = random_tensor(GRIDS["q4_0"], out=40, blocks=7)
    whole = np.concatenate([batch.expected for batch in batches(q, KERNELS["8 bits"])])
    monkeypatch.setattr(probes, "ANSWERS", 40 * 16)
    monkeypatch.setattr(probes, "TILE", 64)
    cut = np.concatenate([batch.expected for batch in batches(q, KERNELS["8 bits"])])
    assert (whole == cut).all()


@pytest.mark.parametrize(("grid", "kernel"), CASES, ids="-".join)
def test_certain_answers_are_the_exact_ones(grid: str, kernel: str) -> None:
    """Of probes of one block and of two or three: where nothing can round, float64 has the answer."""
    # several terms, each rounded for itself, are not what float64 rounds once
    several = GRIDS[grid].zero is Zero.OFFSET or GRIDS[grid].unit > GRIDS[grid].block or kernel == "split"
    q = random_tensor(GRIDS[grid], out=5, blocks=6 if GRIDS[grid].unit < 256 else 3)
    for batch in batches(q, KERNELS[kernel]):
        if batch.inputs is not None:
            continue
        fed = np.count_nonzero(batch.x, 1)
        assert set(fed[fed > 0]) <= ({2, 3} if batch.kind == "spread" else set(range(1, 257)))
        assert (np.abs(batch.x).max(1)[fed > 0] == HEIGHT).all()
        exact = (batch.x.astype(np.float64) @ decode(q).astype(np.float64).T).astype(np.float32)
        assert several or (batch.expected == exact)[batch.certified].all()
        assert not batch.expected[fed == 0].any()
