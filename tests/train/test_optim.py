"""t-SignSGD against hand-worked vectors and its stated laws."""

import pytest
import torch

from edgeqaf.optim import TSignSGD, keep, threshold


def moved(values: list[float], grads: list[float], **options: object) -> list[float]:
    p = torch.tensor(values, requires_grad=True)
    optimizer = TSignSGD([p], steps=100, **options)  # type: ignore[arg-type]
    p.grad = torch.tensor(grads)
    optimizer.step()
    return p.detach().tolist()


def test_only_the_largest_gradients_move_and_by_their_sign() -> None:
    """40 entries at 5 %: two may move; clipped at the ends of the ternary range."""
    grads = [0.001 * (i + 1) for i in range(40)]
    grads[10], grads[20] = -9.0, 8.0
    after = moved([0.0] * 40, grads)
    assert [i for i, v in enumerate(after) if v] == [10, 20]
    assert after[10] == 1.0
    assert after[20] == -1.0
    assert moved([1.0] + [0.0] * 39, [-9.0] + [0.0] * 39)[0] == 1.0


def test_gradients_below_tau_never_move() -> None:
    assert moved([0.0] * 40, [1e-10] * 40) == [0.0] * 40


def test_paper_schedule() -> None:
    """5 % at the start, 0.1 % after 80 % of the steps, then 0.01 %."""
    assert keep(0, 1000, "linear") == 0.05
    assert keep(400, 1000, "linear") == 0.05 + (0.001 - 0.05) * 0.5
    assert 0.001 < keep(799, 1000, "linear") < 0.0011
    assert keep(800, 1000, "linear") == 0.0001
    assert keep(999, 1000, "linear") == 0.0001


def test_cosine_falls_from_start_to_floor() -> None:
    shares = [keep(t, 100, "cosine") for t in range(101)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 0.05
    assert shares[-1] == 0.0001


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.25, 1.0])
def test_threshold_is_an_order_statistic(share: float) -> None:
    size = torch.rand(5000, generator=torch.Generator().manual_seed(1))
    expected = max(1, round(share * 5000))
    assert int((size > threshold(size, share)).sum()) == min(expected, 5000)


def test_momentum_spends_what_it_used() -> None:
    p = torch.zeros(40, requires_grad=True)
    optimizer = TSignSGD([p], steps=100, momentum=0.9, schedule="cosine")
    p.grad = torch.arange(40).float()
    optimizer.step()
    mean = optimizer.state[p]["mean"]
    assert p[39] == -1.0
    assert mean[39] == 0
    assert mean[30] == 30.0
