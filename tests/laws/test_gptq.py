"""GPTQ on one matrix: the paper's algorithm step by step, on its grid, better than rounding where inputs correlate."""

from dataclasses import replace

import numpy as np
import pytest
from samples import ALL

from edgeqaf import gptq, rounding
from edgeqaf.errors import Refused
from edgeqaf.grid import Zero
from edgeqaf.qtensor import QTensor, check, decode

ONE_LEVEL = [grid for grid in ALL if grid.levels is None]
each_grid = pytest.mark.parametrize("grid", ONE_LEVEL, ids=lambda grid: grid.name)
INPUTS = 512  # two of the largest block


def weights(out: int = 24, inputs: int = INPUTS) -> np.ndarray:
    return (np.random.default_rng(3).standard_t(4, (out, inputs)) * 0.02).astype(np.float32)


def correlated(inputs: int = INPUTS, tokens: int = 2048) -> np.ndarray:
    """X^T X of inputs that follow a third as many causes, some loud, some faint."""
    rng = np.random.default_rng(4)
    causes = rng.normal(size=(tokens, inputs // 3)) @ rng.normal(size=(inputs // 3, inputs))
    x = (causes + rng.normal(size=(tokens, inputs))) * np.exp(rng.normal(size=inputs))
    return x.T @ x


def same(a: QTensor, b: QTensor) -> bool:
    parts = ("codes", "scale") if a.zero is None else ("codes", "scale", "zero")
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in parts)


def loss(w: np.ndarray, q: QTensor, hessian: np.ndarray) -> float:
    """tr((W - Q) H (W - Q)^T): the squared change of the layer's output."""
    error = w.astype(np.float64) - decode(q)
    return float(((error @ hessian) * error).sum())


@each_grid
def test_without_correlations_it_is_the_search_for_each_block(grid):
    w = weights()
    upper = gptq.inverse_factor(7.0 * np.eye(INPUTS), 0.01)
    assert same(check(gptq.quantize(w, grid, upper)), rounding.quantize(w, grid))


@each_grid
def test_with_correlations_the_output_changes_less(grid):
    w, hessian = weights(), correlated()
    q = check(gptq.quantize(w, grid, gptq.inverse_factor(hessian, 0.01)))
    assert loss(w, q, hessian) < 0.7 * loss(w, rounding.quantize(w, grid), hessian)
    assert same(q, gptq.quantize(w, grid, gptq.inverse_factor(hessian, 0.01)))


@each_grid
def test_it_is_algorithm_1_step_by_step(grid, monkeypatch):
    """On numbers that float32 adds up without rounding: one column after the other, over the whole row, in float64."""
    rng = np.random.default_rng(5)
    w = rng.integers(-64, 65, (16, INPUTS)).astype(np.float32) / 16
    upper = (
        np.eye(INPUTS) + np.triu(rng.integers(-1, 2, (INPUTS, INPUTS)) * (rng.random((INPUTS, INPUTS)) < 0.01), 1) / 2
    )
    # An error is within half a step of 1/2, or as far beyond the grid's ends as a weight has been pushed.
    scale = np.full((16, 1), 0.5, np.float32)
    zero = None if grid.zero is Zero.NONE else np.full((16, 1), -2.0 if grid.zero is Zero.OFFSET else 2.0, np.float32)
    monkeypatch.setattr(rounding, "WIDEST", 0)  # the definition, whose candidates are ours here
    monkeypatch.setattr(rounding, "candidates", lambda block, grid: [(scale * 4, zero), (scale, zero)])
    q = gptq.quantize(w, grid, upper)
    left, single = w.astype(np.float64), replace(grid, block=1)
    for j in range(INPUTS):
        block = j // grid.block
        kept = QTensor(
            single, q.codes[:, j : j + 1], q.scale[:, [block]], None if q.zero is None else q.zero[:, [block]]
        )
        nearest = rounding.nearest(left[:, j : j + 1].astype(np.float32), single, kept.scale, kept.zero)
        assert np.array_equal(nearest.codes, kept.codes), j
        left[:, j + 1 :] -= (left[:, j : j + 1] - decode(kept)) * upper[j, j + 1 :]
    assert set(np.unique(q.scale)) <= {0.5, 2.0}


@each_grid
def test_compiled_it_has_the_bits_of_the_definition(grid, monkeypatch):
    w, upper = weights(40), gptq.inverse_factor(correlated(), 0.01)
    w[3], w[5, :64], w[6, ::3], w[7] = 0, -0.75, 0, np.round(w[7] * 64) / 64
    compiled = gptq.quantize(w, grid, upper)
    monkeypatch.setattr(rounding, "WIDEST", 0)
    monkeypatch.setattr(rounding, "ROWS", 16)
    assert same(compiled, gptq.quantize(w, grid, upper))


def test_of_two_scales_the_one_of_less_loss_is_kept(monkeypatch):
    grid = next(g for g in ONE_LEVEL if g.name == "q4_0")
    w, scale = weights(16, 64), np.full((16, 1), 2.0**-8, np.float32)
    upper = gptq.inverse_factor(correlated(64), 0.01)
    monkeypatch.setattr(rounding, "WIDEST", 0)
    found = []
    for tries in ([scale], [scale * 8], [scale * 8, scale]):
        monkeypatch.setattr(rounding, "candidates", lambda block, grid, t=tries: [(s, None) for s in t])
        found.append(gptq.quantize(w[:, :32], grid, upper[:32, :32]))
    fine, coarse, best = (((w[:, :32] - decode(q)) ** 2).sum(1) for q in found)
    assert set(np.unique(found[2].scale)) <= {2.0**-8, 2.0**-5}
    assert ((best == fine) | (best == coarse)).all()


def test_the_factor_is_that_of_the_inverse():
    """A triangle of integers with ones on its diagonal has an inverse of integers, and nothing rounds."""
    rng = np.random.default_rng(6)
    triangle = np.eye(24) + np.triu(rng.integers(-1, 2, (24, 24)) * (rng.random((24, 24)) < 0.2), 1)
    upper = gptq.inverse_factor(triangle @ triangle.T, 0.0)
    assert np.array_equal(upper @ triangle, np.eye(24))
    assert np.array_equal(upper, np.triu(upper))


def test_damping_is_a_share_of_the_mean_of_the_diagonal():
    hessian = np.diag([1.0, 2.0, 3.0, 10.0])  # 0.25 of the mean is 1
    assert np.array_equal(gptq.inverse_factor(hessian, 0.25), gptq.inverse_factor(hessian + np.eye(4), 0.0))


@each_grid
def test_inputs_that_are_always_zero_are_rounded_by_themselves(grid):
    w, hessian = weights(8, 3 * grid.block), correlated(3 * grid.block)
    dead = slice(grid.block, 2 * grid.block)
    hessian[dead], hessian[:, dead] = 0, 0
    upper = gptq.inverse_factor(hessian, 0.01)
    q, other = gptq.quantize(w, grid, upper), w.copy()
    alone = rounding.quantize(np.ascontiguousarray(w[:, dead]), grid)
    assert np.array_equal(q.codes[:, dead], alone.codes)
    other[:, dead] *= -3
    live = np.r_[: grid.block, 2 * grid.block : 3 * grid.block]
    assert np.array_equal(q.codes[:, live], gptq.quantize(other, grid, upper).codes[:, live])
    silent = gptq.inverse_factor(np.zeros_like(hessian), 0.01)
    assert same(gptq.quantize(w, grid, silent), rounding.quantize(w, grid))


@pytest.mark.parametrize("bad", [np.ones((64, 64)), np.full((64, 64), np.nan)], ids=["singular", "not numbers"])
def test_a_hessian_that_has_no_inverse_is_refused(bad):
    with pytest.raises(Refused, match="64 inputs is not positive definite with a damping of 0") as refused:
        gptq.inverse_factor(bad, 0.0)
    assert "--damping" in refused.value.remedy


def test_a_weight_beyond_float16_is_refused():
    grid = next(g for g in ONE_LEVEL if g.name == "q4_0")
    w = weights(2, 64)
    w[1, 40] = 1e9
    with pytest.raises(Refused, match="1e\\+09"):
        gptq.quantize(w, grid, np.eye(64))
