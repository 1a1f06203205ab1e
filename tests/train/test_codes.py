"""`codes` against its equations written a second time in numpy; its noise; its state through a resume."""

from typing import Any

import numpy as np
import pytest
import torch
from on_grid import on_grid
from torch import nn

from edgeqaf import plugins
from edgeqaf.adapters.codes import Codes
from edgeqaf.errors import UsageError
from edgeqaf.gradient import Flow
from edgeqaf.method import Course, adapter_state, method_of
from edgeqaf.nn import QLinear, to_numpy
from edgeqaf.noise import mix, noise, table
from edgeqaf.quantizers.rtn import quantize

GRIDS = plugins.names("grids")


def layer_for(grid: str, lr: float = 0.5, accumulate: int = 1, seed: int = 0) -> tuple[QLinear, Any]:
    on = plugins.find("grids", grid)
    weights = np.random.default_rng(seed).standard_normal((6, max(128, on.unit))).astype(np.float32)
    layer = QLinear(on_grid(weights, on))
    method, options = method_of("codes", {"lr": lr})
    model = method.attach(nn.ModuleDict({"layer": layer}), options, seed)
    optimizer, _ = method.optimizer(model, options, Course(50, accumulate))
    optimizer.param_groups[0]["lr"] = lr
    return layer, optimizer


def entry(i: int) -> float:
    """The table's definition in Python's integers: two entries a word, the low half first."""
    x = mix(i // 2 * 0x9E3779B1)
    return (x >> 16 if i % 2 else x & 0xFFFF) / 65536


def drawn(seed: int, turn: int, rows: int, columns: int) -> np.ndarray[Any, Any]:
    return noise(seed, turn, 0, rows, columns, torch.device("cpu")).numpy()


def test_noise_is_the_table_it_says_it_is() -> None:
    whole = table("cpu")
    assert len(whole) == 2**19
    for i in [*range(300), *range(2**19 - 300, 2**19)]:
        assert float(whole[i]) == entry(i)
    start = mix(7 * 0x85EBCA6B + 3 * 0xC2B2AE35 + 2 * 0x27D4EB2F) % (2**19 - 61 * 256 - 96)
    rows = noise(7, 3, 512, 4, 96, torch.device("cpu"))
    for r in range(4):
        assert rows[r].tolist() == whole[start + 61 * r : start + 61 * r + 96].tolist()


def test_noise_is_uniform_and_unlike_from_update_to_update() -> None:
    counts = torch.histc(table("cpu"), 64, 0, 1)
    assert 30 < float(((counts - 2**13) ** 2 / 2**13).sum()) < 110  # chi squared, 63 degrees: 0.02 % on either side
    at_a_place = torch.tensor(
        [[noise(5, turn, 0, 8, 64, torch.device("cpu"))[3, i] for turn in range(4000)] for i in (0, 63)]
    )
    for series in at_a_place:
        assert abs(float(series.mean()) - 0.5) < 4 / (12 * 4000) ** 0.5
        assert abs(float(torch.corrcoef(torch.stack([series[:-1], series[1:]]))[0, 1])) < 4 / 4000**0.5
    neighbours = torch.corrcoef(torch.stack([table("cpu")[:-1], table("cpu")[1:]]))
    assert abs(float(neighbours[0, 1])) < 0.01


def by_the_equations(layer: QLinear, part: Codes, gradients: list[Any], lr: float) -> tuple[Any, Any]:
    """(codes, remainders) after the updates, by the docstring's equations in float32 numpy."""
    q = to_numpy(layer.q)
    grid, scale = q.grid, q.scale.repeat(q.grid.block, 1)
    value = q.codes.astype(np.int64) * 128
    v_row, v_col = np.zeros(value.shape[0], np.float32), np.zeros(value.shape[1], np.float32)
    for t, gradient in enumerate(gradients):
        g = gradient * scale
        b = np.float32(min(0.99, 1 - (t + 1) ** -0.8))
        v_row = b * v_row + (1 - b) * (g**2).mean(1)
        v_col = b * v_col + (1 - b) * (g**2).mean(0)
        u = np.clip(g / np.sqrt(np.outer(v_row, v_col) / v_row.mean()), -5, 5)
        moves = 128 * lr * u + drawn(part.seed, t, *g.shape)
        value = np.clip(value - np.floor(moves).astype(np.int64), 128 * grid.lo - 64, 128 * grid.hi + 63)
    codes = np.floor(value / 128 + 0.5).astype(np.int64)
    return codes, value - 128 * codes


@pytest.mark.parametrize("grid", GRIDS)
def test_updates_follow_the_equations(grid: str) -> None:
    layer, optimizer = layer_for(grid)
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal((6, layer.in_features)).astype(np.float32) for _ in range(4)]
    for g in gradients:
        layer.adapter.update(layer, torch.from_numpy(g.copy()))
        optimizer.step()
    codes, remainders = by_the_equations(layer, layer.adapter, gradients, 0.5)
    found = to_numpy(layer.folded()).codes.astype(np.int64) * 128 + layer.adapter.remainder.numpy()
    expected = codes * 128 + remainders
    # The same real numbers in another order of operations: a draw that falls on the edge may differ by one.
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.01
    assert (np.abs(expected - 128 * to_numpy(layer.q).codes.astype(np.int64)) > 64).mean() > 0.2


def test_gathered_micro_batches_are_one_update_of_their_sum() -> None:
    once, _ = layer_for("q4_0")
    gathered, optimizer = layer_for("q4_0", accumulate=2)
    x = torch.randn(10, 128, generator=torch.Generator().manual_seed(0))
    dy = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    for half in (slice(0, 5), slice(5, 10)):
        gathered(x[half]).backward(dy[half])
    assert torch.equal(gathered.folded().codes, gathered.q.codes)
    optimizer.step()
    halves = (Flow(x[half], dy[half]).narrowed() for half in (slice(0, 5), slice(5, 10)))
    once.adapter.update(once, sum(flow.weight_gradient(slice(0, 6)) for flow in halves))  # type: ignore[arg-type]
    assert torch.equal(gathered.folded().codes, once.folded().codes)
    assert torch.equal(gathered.adapter.remainder, once.adapter.remainder)
    assert not torch.equal(once.folded().codes, once.q.codes)


def test_a_resumed_state_goes_on_in_the_same_bits() -> None:
    def steps(layer: QLinear, optimizer: Any, first: int, last: int) -> None:
        for i in range(first, last):
            generator = torch.Generator().manual_seed(i)
            layer(torch.randn(9, 128, generator=generator)).backward(torch.randn(9, 6, generator=generator))
            optimizer.step()

    straight, optimizer = layer_for("q4_0")
    steps(straight, optimizer, 0, 6)
    before, first = layer_for("q4_0")
    steps(before, first, 0, 3)
    after, second = layer_for("q4_0")
    for name, value in adapter_state(nn.ModuleDict({"layer": before})).items():
        adapter_state(nn.ModuleDict({"layer": after}))[name].copy_(value)
    second.load_state_dict(first.state_dict())
    after.changed()
    steps(after, second, 3, 6)
    for name, value in adapter_state(nn.ModuleDict({"layer": straight})).items():
        assert torch.equal(value, adapter_state(nn.ModuleDict({"layer": after}))[name]), name


def test_depth_groups_take_turns_and_spare_what_lies_below() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    grid = plugins.find("grids", "q4_0")
    layers = nn.Sequential(*(QLinear(quantize(weights, grid)) for _ in range(4)))
    model = nn.ModuleDict({"layers": layers})  # layers.0 ... layers.3
    method, options = method_of("codes", {"groups": 2})
    method.attach(model, options, 0)
    optimizer, _ = method.optimizer(model, options, Course(4))
    for turn in ([2, 3], [0, 1], [2, 3]):
        before = [int(layer.adapter.updates) for layer in layers]
        layers(torch.randn(5, 64)).square().sum().backward()
        optimizer.step()
        assert [i for i, layer in enumerate(layers) if int(layer.adapter.updates) > before[i]] == turn


def test_codes_that_change_between_forward_and_backward_are_caught() -> None:
    layer, _ = layer_for("q4_0")
    y = layer(torch.randn(3, 128)) + layer(torch.randn(3, 128))
    with pytest.raises(RuntimeError, match="changed between its forward and its backward"):
        y.sum().backward()


def test_a_rate_beyond_the_arithmetic_is_refused() -> None:
    layer, _ = layer_for("q8_0")
    method, options = method_of("codes", {"lr": 8, "groups": 3})
    with pytest.raises(UsageError, match=r"codes: lr=8\.0 times groups=3 is more than 20 code steps"):
        method.optimizer(nn.ModuleDict({"layer": layer}), options, Course(10))
