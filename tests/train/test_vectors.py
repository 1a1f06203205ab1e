"""Each method against numbers worked by hand from its paper's equations."""

from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import GridError, UsageError
from edgeqaf.grid import Grid, Zero
from edgeqaf.method import Baseline, Method, method_of
from edgeqaf.modeling import build
from edgeqaf.nn import QLinear, qlinears, to_numpy
from edgeqaf.packed import lanes
from edgeqaf.qtensor import QTensor, decode


def grid_named(name: str) -> Grid:
    grid: Grid = plugins.find("grids", name)
    return grid


def layer_of(grid: str, codes: Any, scale: Any, zero: Any = None) -> QLinear:
    as_float = lambda x: None if x is None else np.array(x, np.float32)  # noqa: E731
    return QLinear(QTensor(grid_named(grid), np.array(codes, np.int8), np.array(scale, np.float32), as_float(zero)))


def attach(layer: QLinear, name: str, **options: Any) -> Any:
    method, chosen = method_of(name, options)
    assert isinstance(method, Method)
    method.attach(nn.ModuleDict({"layer": layer}), chosen, 0)
    return layer.adapter


def filled(adapter: Any, **values: Any) -> None:
    for name, value in values.items():
        getattr(adapter, name).data = torch.as_tensor(value, dtype=torch.float32)


def all_at(row: int, value: float = 7.0) -> list[float]:
    return [value] * 32 * row


@pytest.mark.parametrize("grid", ["q4_0", "q3_0", "q2_0", "q8_0"])
def test_lota_moves_by_the_sign_where_the_product_exceeds_omega(grid: str) -> None:
    """r = 2, omega = 0.75 r = 1.5: products 2, 0, -2, 1 give moves +1, 0, -1, 0 (eq. 3), masked at the ends."""
    g = grid_named(grid)
    layer = layer_of(grid, [all_at(1, g.hi), all_at(1, g.lo + 1)], [[1.0], [1.0]])
    lota = attach(layer, "lota", rank=2, paper=True)
    a = torch.zeros(2, 32)
    a[:, :4] = torch.tensor([[1.0, 1, -1, 1], [1.0, -1, -1, 0]])
    filled(lota, a=a, b=[[1.0, 1], [1, 1]])
    assert lota.omega() == 1.5
    moved = layer.folded().codes.int() - layer.q.codes.int()
    assert moved[:, :4].tolist() == [[0, 0, -1, 0], [1, 0, -1, 0]]
    assert moved[:, 4:].abs().sum() == 0


@pytest.mark.parametrize(("offset", "mu"), [("paper", (0.5 - 0.5 - 1) / 32), ("code", (2 - 0.5 - 1) / 32 / 1.5)])
def test_lota_offset_by_hand(offset: str, mu: float) -> None:
    """Products 2, -2, -1 in one block of 32, omega 1.5, the first weight at the grid's end.

    Paper: mean(dW - omega What) with What = (1, -1, 0): (0.5 - 0.5 - 1) / 32. Released code: What masked where it
    would leave the grid, so (0, -1, 0): (2 - 0.5 - 1) / 32, and divided by omega. The zero rises by scale * mu.
    """
    layer = layer_of("q4_1", [[15, *all_at(1)[1:]]], [[0.25]], [[-1.0]])
    lota = attach(layer, "lota", rank=2, paper=True, offset=offset)
    a = torch.zeros(2, 32)
    a[:, :3] = torch.tensor([[1.0, -1, -1], [1.0, -1, 0]])
    filled(lota, a=a, b=[[1.0, 1.0]])
    folded = to_numpy(layer.folded())
    assert (folded.codes.astype(int) - to_numpy(layer.q).codes)[0, :4].tolist() == [0, -1, 0, 0]
    assert folded.zero is not None
    assert folded.zero[0, 0] == np.float32(np.float16(np.float32(-1.0) + np.float32(0.25) * np.float32(mu)))


def test_lota_offset_needs_a_float_zero() -> None:
    for grid, zero in (("q4_0", None), ("uint4", [[7.0]])):
        with pytest.raises(GridError, match=f"lota: offset=paper needs a float zero, which grid {grid} does not have"):
            attach(layer_of(grid, [all_at(1)], [[1.0]], zero), "lota", offset="paper")


def test_lota_starts_ternary_with_b_zero() -> None:
    adapter = attach(layer_of("q4_0", [all_at(8)] * 4, np.ones((4, 8))), "lota")
    assert set(adapter.a.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert adapter.b.abs().sum() == 0
    share = float((adapter.a != 0).float().mean())
    assert 0.45 < share < 0.65  # a Gaussian leaves 55 % beyond 0.75 of its mean magnitude


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5])
def test_lota_omega_moves_about_the_rate_asked_for(rate: float) -> None:
    from edgeqaf.adapters.lota import omega_for

    product = torch.randint(-8, 9, (200, 300), generator=torch.Generator().manual_seed(0)).float()
    omega = omega_for(torch.bincount(product.abs().long().flatten()), rate)
    shares = [float((product.abs() > k + 0.5).double().mean()) for k in range(9)]
    assert float((product.abs() > omega).double().mean()) == min(shares, key=lambda s: abs(s - rate))


def test_qa_hira_by_hand_on_a_float_zero() -> None:
    """zero' = f16(zero + scale M): block 0 of row 0 rises by 2 steps of 0.25, block 1 of row 1 falls by half a step."""
    layer = layer_of("q4_1", [all_at(2), all_at(2)], [[0.25, 0.5], [0.25, 0.5]], [[-1.0, -1.0], [-1.0, -1.0]])
    filled(attach(layer, "qa_hira"), m=[[2.0, 0.0], [0.0, -0.5]])
    assert layer.folded().zero.tolist() == [[-0.5, -1.0], [-1.0, -1.25]]  # type: ignore[union-attr]
    x = torch.ones(1, 64)
    assert (layer(x) - x @ decode(layer.q).T).tolist() == [[2.0 * 0.25 * 32, -0.5 * 0.5 * 32]]  # M pooled sums


def test_qa_hira_by_hand_on_an_integer_zero() -> None:
    """zero' = clip(round(zero - M)): weights rise by M steps, M rounded to even halves, within [0, 15]."""
    layer = layer_of("uint4", [all_at(4)], [[0.25] * 4], [[7.0, 7.0, 1.0, 7.0]])
    filled(attach(layer, "qa_hira"), m=[[2.0, 0.4, 3.0, -2.5]])
    assert layer.folded().zero.tolist() == [[5.0, 7.0, 0.0, 10.0]]  # type: ignore[union-attr]


def test_qa_hira_groups_rows_and_units() -> None:
    """group = 64 spans two blocks, repeat = 2 two rows; unit=weights adds M itself; mean pooling divides by 64."""
    base = ([all_at(4)] * 4, [[0.5, 0.25, 0.5, 0.5]] * 4, [[0.0] * 4] * 4)
    layer = layer_of("q4_1", *base)
    filled(attach(layer, "qa_hira", group=64, repeat=2), m=[[1.0, 0.0], [0.0, 2.0]])
    assert layer.folded().zero.tolist() == [[0.5, 0.25, 0, 0]] * 2 + [[0, 0, 1.0, 1.0]] * 2  # type: ignore[union-attr]
    layer = layer_of("q4_1", *base)
    filled(attach(layer, "qa_hira", unit="weights", pooling="mean", group=64), m=[[32.0, 0.0]] * 4)
    assert layer.folded().zero.tolist() == [[0.5, 0.5, 0, 0]] * 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 4}, "group=4 is no multiple of q4_1's block of 32"),
        ({"group": 96}, "group=96 does not divide 64 inputs"),
        ({"repeat": 3}, "repeat=3 does not divide 2 outputs"),
    ],
)
def test_blocks_that_no_zero_absorbs_are_refused(options: dict[str, int], message: str) -> None:
    layer = layer_of("q4_1", [all_at(2)] * 2, [[1.0] * 2] * 2, [[0.0] * 2] * 2)
    with pytest.raises(UsageError, match=message):
        attach(layer, "qa_hira", **options)


@pytest.mark.parametrize("grid", ["q4_1", "uint4"])
def test_qa_lora_by_the_papers_merge(grid: str) -> None:
    """Section 3.3: zeros' = zeros - s (B A) / scale with s = 1 / sqrt(r), so W' = W + s (B A) on every block."""
    zero = [[-1.0, -2.0]] if grid == "q4_1" else [[7.0, 8.0]]
    layer = layer_of(grid, [all_at(2)], [[0.5, 0.25]], zero)
    filled(attach(layer, "qa_lora", rank=4, unit="weights"), a=[[1.0, 2.0]] * 4, b=[[0.5, 0.5, 0.5, 0.5]])
    rise = torch.tensor([[1.0, 2.0]])  # (B A) / sqrt(4) = (2, 4) / 2
    assert torch.equal(layer.weight, decode(layer.q) + rise.repeat_interleave(32, 1))


def test_scale_by_hand() -> None:
    """scale' = f16(scale (1 + S)), and S is held above -0.95: no scale vanishes or turns."""
    layer = layer_of("q4_0", [all_at(3)], [[0.5, -0.5, 1.0]])
    filled(attach(layer, "scale"), s=[[0.5, 0.25, -3.0]])
    assert layer.folded().scale.tolist() == [[0.75, -0.625, float(np.float16(np.float32(1.0) - np.float32(0.95)))]]


def test_lowrank_by_hand() -> None:
    """r = 1: codes rise by floor((u / s) B A + 1/2), u = mean |s| = 0.5; a negative scale turns the step."""
    layer = layer_of("q4_0", [all_at(2)], [[0.25, -0.75]])
    a = torch.zeros(1, 64)
    a[0, :3] = torch.tensor([1.0, -1.0, 0.25])
    a[0, 32:35] = torch.tensor([1.0, 3.0, 30.0])
    filled(attach(layer, "lowrank", rank=1), a=a, b=[[1.0]])
    moved = (layer.folded().codes.int() - 7)[0]
    assert moved[:3].tolist() == [2, -2, 1]  # 2 * (1, -1, 0.25) = 2, -2, 0.5
    assert moved[32:35].tolist() == [-1, -2, -7]  # -2/3 * (1, 3, 30) = -0.67, -2, -20 clipped to code 0
    assert moved[[3, 31, 35, 63]].tolist() == [0, 0, 0, 0]


@torch.no_grad()
def test_q_bara_adds_its_pooled_product_and_merges_what_it_adds(tiny_model: QModel) -> None:
    """delta[o, i] = alpha / r * (B A)[o // 2, i // 2] / 2, because pooling takes a mean."""
    method, options = method_of("q_bara", {"rank": 2, "alpha": 4.0})
    assert isinstance(method, Baseline)
    model = method.attach(build(tiny_model.config, tiny_model.tensors), options, 0)
    layer: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    filled(layer, b=torch.arange(layer.b.numel()).view(layer.b.shape) / 7)
    product = layer.b @ layer.a
    for o, i in ((0, 0), (1, 1), (2, 5), (7, 4)):  # alpha / r = 2, and each of two pooled inputs counts half
        assert layer.delta_weight()[o, i] == product[o // 2, i // 2]
    x = torch.randn(3, layer.base.in_features, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ (layer.base.weight.double() + layer.delta_weight().double()).T
    # Bounded: sums of float32 products in another order.
    assert float((layer(x).double() - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    merged = method.merged_weights(model)["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(merged, (layer.base.weight + layer.delta_weight()).bfloat16().float())


def test_q_bara_pool_that_does_not_divide_is_refused(tiny_model: QModel) -> None:
    method, options = method_of("q_bara", {"pool": 7})
    with pytest.raises(UsageError, match="pool=7 does not divide a layer of"):
        method.attach(build(tiny_model.config, tiny_model.tensors), options, 0)


def test_lora_is_pefts_own_over_the_same_weights(tiny_model: QModel) -> None:
    """Against peft on ordinary linears that hold the decoded weights: same start, same logits, same merge, in bits."""
    method, options = method_of("lora", {"rank": 3})
    assert isinstance(method, Baseline)
    ours = method.attach(build(tiny_model.config, tiny_model.tensors), options, 5)
    plain = build(tiny_model.config, tiny_model.tensors)
    for name, layer in qlinears(plain).items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
        linear.weight = nn.Parameter(layer.weight, requires_grad=False)
        setattr(plain.get_submodule(parent), child, linear)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(5)
    theirs = peft.LoraModel(plain, peft.LoraConfig(r=3, lora_alpha=32, target_modules=targets), "default")
    theirs_by_name = {n.removeprefix("model."): p for n, p in theirs.named_parameters() if "lora" in n}
    ours_by_name = {n: p for n, p in ours.named_parameters() if "lora" in n}
    assert ours_by_name.keys() == theirs_by_name.keys()
    generator = torch.Generator().manual_seed(1)
    for name, p in ours_by_name.items():
        assert torch.equal(p, theirs_by_name[name]), name
        p.data = torch.randn(p.shape, generator=generator) / 10
        theirs_by_name[name].data = p.data
    ids = torch.arange(24).reshape(2, 12) * 5
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    merged = method.merged_weights(ours)
    for name, linear in theirs.merge_and_unload().named_modules():
        if isinstance(linear, nn.Linear) and f"{name}.weight" in merged:
            assert torch.equal(merged[f"{name}.weight"], linear.weight.bfloat16().float()), name


def test_memory_holds_two_four_bit_codes_a_byte() -> None:
    for name in plugins.names("grids"):
        grid = grid_named(name)
        codes = np.zeros((2, grid.block), np.int8)
        zero = None if grid.zero is Zero.NONE else [[1.0], [1.0]]
        layer = layer_of(name, codes, [[1.0], [1.0]], zero)
        assert layer.codes.numel() * lanes(grid) == codes.size
        assert 8 // lanes(grid) == {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}[grid.bits]  # bits a code takes
