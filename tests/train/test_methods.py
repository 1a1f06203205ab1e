"""Laws of every tuning method: training sees exactly what merge stores, and step 0 is the base."""

from typing import Any

import numpy as np
import pytest
import torch

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import GridError, UsageError
from edgeqaf.grid import Slot, Zero
from edgeqaf.method import Method, method_of, trainable
from edgeqaf.modeling import build
from edgeqaf.nn import QLinear, inward, qlinears, to_numpy
from edgeqaf.qtensor import Delta, QTensor, check, decode
from edgeqaf.quantizers.rtn import quantize

METHODS = plugins.names("adapters")
LOSSLESS = [name for name in METHODS if plugins.find("adapters", name).lossless]
GRIDS = plugins.names("grids")


def layer_for(method_name: str, grid_name: str, seed: int = 0, out: int = 24, inputs: int = 64) -> QLinear:
    weights = np.random.default_rng(seed).standard_normal((out, inputs)).astype(np.float32)
    layer = QLinear(quantize(weights, plugins.find("grids", grid_name)))
    method, options = method_of(method_name, {"rank": 4})
    assert isinstance(method, Method)
    layer.attach(method.layer(layer.q, options, torch.Generator().manual_seed(seed)))
    return layer


def disturb(layer: QLinear, seed: int) -> None:
    """Put the adapter in a state far from its start; ternary factors stay ternary."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.adapter.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 3
        parameter.data = noise.sign() * (noise.abs() > 2) if set(parameter.unique().tolist()) <= {-1, 0, 1} else noise


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", LOSSLESS)
def test_step_zero_is_the_base(method: str, grid: str) -> None:
    layer = layer_for(method, grid)
    assert np.array_equal(to_numpy(layer.folded()).codes, to_numpy(layer.q).codes)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", LOSSLESS)
def test_training_forward_equals_decode_of_what_merge_stores(method: str, grid: str, seed: int) -> None:
    layer = layer_for(method, grid, seed)
    disturb(layer, seed)
    stored = check(to_numpy(layer.folded()))
    assert not np.array_equal(stored.codes, to_numpy(layer.q).codes)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(seed))
    forward = layer(x)
    again = torch.nn.functional.linear(x, torch.from_numpy(decode(stored)))
    assert layer.weight().detach().numpy().tobytes() == decode(stored).tobytes()
    assert forward.detach().numpy().tobytes() == again.numpy().tobytes()


@pytest.mark.parametrize("method", LOSSLESS)
def test_every_parameter_gets_a_gradient_once_off_zero(method: str) -> None:
    layer = layer_for(method, "q4_0")
    disturb(layer, 1)
    layer(torch.randn(8, 64)).square().sum().backward()
    for name, parameter in layer.adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_lowrank_codes_do_not_depend_on_threads_or_on_the_order_of_the_rank() -> None:
    layer = layer_for("lowrank", "q4_0", out=96, inputs=256)
    disturb(layer, 5)
    before, threads = to_numpy(layer.folded()).codes, torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert np.array_equal(to_numpy(layer.folded()).codes, before)
    finally:
        torch.set_num_threads(threads)
    order = torch.tensor([2, 0, 3, 1])
    layer.adapter.a.data, layer.adapter.b.data = layer.adapter.a.data[order], layer.adapter.b.data[:, order]
    assert np.array_equal(to_numpy(layer.folded()).codes, before)


def test_lowrank_product_is_exact_against_integers() -> None:
    """The float64 product of the snapped factors equals the same product in Python's integers."""
    from edgeqaf.adapters.lowrank import A_STEP, B_STEP, exact_product

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 8, generator=generator) * 9, torch.randn(6, 64, generator=generator) * 19
    product = exact_product(b, a)
    snapped_a = np.clip(np.rint(a.double().numpy() / A_STEP), -(2**21), 2**21)
    snapped_b = np.clip(np.rint(b.double().numpy() / B_STEP), -(2**26), 2**26)
    for i in range(6):
        for j in range(8):
            exact = sum(int(x) * int(y) for x, y in zip(snapped_b[i], snapped_a[:, j], strict=True))
            assert int(product[i, j].item() / (A_STEP * B_STEP)) == exact
    assert abs(snapped_a).max() * abs(snapped_b).max() * 64 <= 2**53


def test_lowrank_rank_beyond_exactness_is_refused() -> None:
    method, options = method_of("lowrank", {"rank": 65})
    assert isinstance(method, Method)
    with pytest.raises(UsageError, match=r"rank 65 is outside 1\.\.64"):
        method.layer(layer_for("lowrank", "q4_0").q, options, torch.Generator())


def test_gradient_stops_only_where_a_saturated_code_would_be_pushed_outward() -> None:
    outside = torch.tensor([1, 1, -1, -1, 0], dtype=torch.int8)
    grad = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0])  # descent moves an entry against its gradient
    assert inward(grad, outside).tolist() == [1.0, 0.0, 0.0, -1.0, -1.0]


def test_lota_by_hand() -> None:
    """r = 2, omega = 0.75 r = 1.5: only products of magnitude 2 move a code, masked at the grid's ends."""
    grid = plugins.find("grids", "q4_0")
    q = QTensor(grid, torch.full((2, 32), 7, dtype=torch.int8), torch.ones(2, 1))
    q.codes[0, 0], q.codes[0, 1] = 15, 0
    method, options = method_of("lota", {"rank": 2, "paper": True})
    assert isinstance(method, Method)
    lota: Any = method.layer(q, options, torch.Generator().manual_seed(0))
    lota.a.data = torch.zeros(2, 32)
    lota.a.data[:, :4] = torch.tensor([[1.0, 1, -1, 1], [1.0, -1, -1, 0]])
    lota.b.data = torch.tensor([[1.0, 1], [-1, 0]])
    # rows of B A: [2, 0, -2, 1] and [-1, -1, 1, -1]
    delta = lota.delta(q).codes.detach()
    assert lota.omega(torch.zeros(1)) == 1.5
    assert delta[0, :4].tolist() == [0, 0, -1, 0]  # the first is masked: code 15 cannot rise
    assert delta[1].abs().sum() == 0
    assert delta[0, 4:].abs().sum() == 0


def test_lota_starts_ternary_with_b_zero() -> None:
    adapter = layer_for("lota", "q4_0").adapter
    assert set(adapter.a.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert adapter.b.abs().sum() == 0
    share = float((adapter.a != 0).float().mean())
    assert 0.35 < share < 0.75  # a Gaussian leaves 55 % beyond 0.75 of its mean magnitude


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5])
def test_lota_omega_moves_about_the_rate_asked_for(rate: float) -> None:
    from edgeqaf.adapters.lota import omega_for

    product = torch.randint(-8, 9, (200, 300), generator=torch.Generator().manual_seed(0)).float()
    omega = omega_for(product, rate)
    shares = [float((product.abs() > k + 0.5).double().mean()) for k in range(9)]
    assert float((product.abs() > omega).double().mean()) == min(shares, key=lambda s: abs(s - rate))


def test_slots_a_grid_lacks_are_refused_when_attached() -> None:
    class Offsets(torch.nn.Module):
        writes = frozenset({Slot.ZERO})

        def delta(self, q: QTensor) -> Delta:
            return Delta(zero=torch.zeros_like(q.scale))

    for name in GRIDS:
        grid = plugins.find("grids", name)
        layer = QLinear(quantize(np.ones((2, grid.block), np.float32), grid))
        if grid.zero is Zero.NONE:
            with pytest.raises(GridError, match=f"Offsets writes zero, which grid {name} does not have"):
                layer.attach(Offsets())
        else:
            layer.attach(Offsets())


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_parameters(method: str, tiny_model: QModel) -> None:
    def parameters(seed: int) -> dict[str, bytes]:
        made, options = method_of(method, {"rank": 2})
        model = made.attach(build(tiny_model.config, tiny_model.tensors), options, seed)
        return {name: p.detach().numpy().tobytes() for name, p in trainable(model).items()}

    first = parameters(3)
    assert first == parameters(3)
    assert first != parameters(4)


def test_unknown_option_is_named() -> None:
    with pytest.raises(UsageError, match="lota: option omgea"):
        method_of("lota", {"omgea": 1})


def test_built_model_computes_what_transformers_computes(tiny_model: QModel) -> None:
    """Our model with QLinears against the architecture's own class with the decoded weights in it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(LlamaConfig.from_dict(dict(tiny_model.config))).float().eval()
    state = {n: t if not isinstance(t, QTensor) else decode(t) for n, t in tiny_model.tensors.items()}
    theirs.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in state.items()}, strict=False)
    theirs.tie_weights()
    ours = build(tiny_model.config, tiny_model.tensors)
    ids = torch.arange(40).reshape(2, 20) * 7
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert len(qlinears(ours)) == 14
