"""Laws of every tuning method: training sees exactly what merge stores, and step 0 is the base."""

import numpy as np
import pytest
import torch
from on_grid import on_grid
from torch import nn

from edgeqaf import plugins
from edgeqaf.adapter import Adapter
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import GridError, UsageError
from edgeqaf.grid import Slot
from edgeqaf.method import Course, Method, adapter_state, method_of, trainable
from edgeqaf.modeling import build
from edgeqaf.nn import QLinear, qlinears, to_numpy
from edgeqaf.qtensor import Delta, QTensor, check, decode, fold
from edgeqaf.quantizers.rtn import quantize

METHODS = plugins.names("adapters")
ALONE = [name for name in METHODS if plugins.find("adapters", name).lossless]
TOGETHER = ["lowrank+scale", "codes+scale", "lota+scale", "lowrank+qa_hira", "codes+scale+qa_lora"]
GRIDS = plugins.names("grids")


def writes(method: str) -> frozenset[Slot]:
    """The slots that a method's adapter writes, asked of the method on a grid that has them all."""
    layer = layer_for(method, "q4_1")
    return frozenset(layer.adapter.writes)


def layer_for(method_name: str, grid_name: str, seed: int = 0, out: int = 24) -> QLinear:
    grid = plugins.find("grids", grid_name)
    weights = np.random.default_rng(seed).standard_normal((out, max(64, grid.unit))).astype(np.float32)
    layer = QLinear(on_grid(weights, grid))
    method, options = method_of(method_name, {})
    assert isinstance(method, Method)
    method.attach(nn.ModuleDict({"layer": layer}), options, seed)
    return layer


def train(layer: QLinear, method_name: str, steps: int = 12, seed: int = 0) -> None:
    """Some real optimizer steps at a high rate, towards a random target."""
    method, options = method_of(method_name, {})
    model = nn.ModuleDict({"layer": layer})
    optimizer, _ = method.optimizer(model, options, Course(steps))
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(16, layer.out_features, generator=generator) * 9
    for _ in range(steps):
        x = torch.randn(16, layer.in_features, generator=generator)
        (layer(x) - target).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def disturb(layer: QLinear, seed: int) -> None:
    """Put the adapter's parameters in a state far from their start; ternary factors stay ternary."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.adapter.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 3
        parameter.data = noise.sign() * (noise.abs() > 2) if set(parameter.unique().tolist()) <= {-1, 0, 1} else noise


def same(a: QTensor, b: QTensor) -> bool:
    parts = [(a.codes, b.codes), (a.scale, b.scale), *([] if a.zero is None else [(a.zero, b.zero)])]
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in parts)


CASES = [(m, g) for m in [*ALONE, *TOGETHER] for g in GRIDS if writes(m) <= plugins.find("grids", g).slots]
each_case = pytest.mark.parametrize(("method", "grid"), CASES)


@each_case
def test_step_zero_is_the_base(method: str, grid: str) -> None:
    layer = layer_for(method, grid)
    folded, base = to_numpy(layer.folded()), to_numpy(layer.q)
    assert np.array_equal(folded.codes, base.codes)
    assert decode(folded).tobytes() == decode(base).tobytes()


@each_case
@pytest.mark.parametrize("state", ["random", "trained"])
def test_training_forward_equals_decode_of_what_merge_stores(method: str, grid: str, state: str) -> None:
    layer = layer_for(method, grid)
    base = to_numpy(layer.q)
    disturb(layer, 1) if state == "random" else train(layer, method)
    stored = check(to_numpy(layer.folded()))
    if state == "trained" or "codes" not in method:
        assert not same(stored, base)
    with torch.no_grad():
        delta = layer.adapter.delta(layer.q, slice(0, layer.out_features))
    assert same(to_numpy(fold(layer.q, delta)), stored)
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))
    weights = decode(stored)
    assert layer.weight.numpy().tobytes() == weights.tobytes()
    expected = nn.functional.linear(x, torch.from_numpy(weights)).numpy().tobytes()
    assert layer(x).detach().numpy().tobytes() == expected
    with torch.no_grad():
        assert layer(x).numpy().tobytes() == expected


@each_case
def test_tiles_change_nothing(method: str, grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(tile: int) -> tuple[QTensor, list[bytes]]:
        monkeypatch.setattr("edgeqaf.packed.TILE", tile)
        layer = layer_for(method, grid)
        disturb(layer, 1)
        return to_numpy(layer.folded()), [t.numpy().tobytes() for t in layer.adapter.state_dict().values()]

    whole, tiled = outcome(2**21), outcome(5 * 64)
    assert same(whole[0], tiled[0])
    assert whole[1] == tiled[1]


@pytest.mark.parametrize("method", ALONE)
def test_training_moves_what_the_method_says_it_writes_and_nothing_else(method: str) -> None:
    layer = layer_for(method, "q4_1")
    before = to_numpy(layer.q)
    train(layer, method)
    after = to_numpy(layer.folded())
    moved = {slot for slot in Slot if not np.array_equal(getattr(before, slot.value), getattr(after, slot.value))}
    assert moved == layer.adapter.writes


@pytest.mark.parametrize("method", [*ALONE, *TOGETHER])
def test_training_lowers_the_loss_of_a_reachable_target(method: str) -> None:
    layer = layer_for(method, "q4_1")
    shifted = layer.q.replace(codes=(layer.q.codes + 1).clip(0, 15), scale=(layer.q.scale * 1.25).half().float())
    target = decode(shifted.replace(zero=(layer.q.zero * 1.5).half().float()))  # type: ignore[operator]
    chosen, options = method_of(method, {"lr": 0.2} if method.startswith("codes") else {})
    optimizer, _ = chosen.optimizer(nn.ModuleDict({"layer": layer}), options, Course(60))
    generator = torch.Generator().manual_seed(0)

    def loss() -> torch.Tensor:
        x = torch.randn(64, 64, generator=generator)
        return (layer(x) - x @ target.T).square().mean()

    first = float(loss().detach())
    for _ in range(60):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss().detach()) < 0.9 * first


def test_slots_a_grid_lacks_are_refused_when_attached() -> None:
    for name in GRIDS:
        grid = plugins.find("grids", name)
        layer = QLinear(on_grid(np.ones((2, grid.unit), np.float32), grid))
        method, options = method_of("qa_hira", {})
        if Slot.ZERO in grid.slots:
            method.attach(nn.ModuleDict({"layer": layer}), options, 0)
        else:
            with pytest.raises(GridError, match=f"Hira writes zero, which grid {name} does not have"):
                method.attach(nn.ModuleDict({"layer": layer}), options, 0)


def test_two_writers_of_a_slot_are_refused() -> None:
    with pytest.raises(UsageError, match=r"codes\+lowrank: codes and lowrank both write codes"):
        layer_for("codes+lowrank", "q4_0")


@pytest.mark.parametrize("name", ["lowrank+lowrank", "lowrank+lora"])
def test_what_cannot_be_combined_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"lowrank\+lo.*: lo.* (appears twice|is no lossless method)"):
        method_of(name, {})


def test_options_of_a_combination_go_to_their_part() -> None:
    _, options = method_of("lowrank+scale", {"lr": 0.2, "scale.lr": 0.03, "rank": 8})
    assert options.model_dump()["lowrank"]["lr"] == 0.2
    assert options.model_dump() == {"lowrank": options.lowrank.model_dump(), "scale": {"lr": 0.03}}  # type: ignore[attr-defined]
    assert method_of("lowrank+scale", options.model_dump())[1].model_dump() == options.model_dump()
    with pytest.raises(UsageError, match=r"option lota\.rank names no part of it"):
        method_of("lowrank+scale", {"lota.rank": 1})


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_parameters(method: str, tiny_model: QModel) -> None:
    def parameters(seed: int) -> dict[str, bytes]:
        made, options = method_of(method, {})
        grid = "q4_1" if method in ("qa_hira", "qa_lora") else "q4_0"
        q = {n: requantized(t, grid) if isinstance(t, QTensor) else t for n, t in tiny_model.tensors.items()}
        model = made.attach(build(tiny_model.config, q), options, seed)
        return {name: p.detach().numpy().tobytes() for name, p in adapter_state(model).items()}

    first = parameters(3)
    assert first == parameters(3)
    if method not in ("codes", "scale", "qa_hira"):  # those start at zero, whatever the seed
        assert first != parameters(4)


def requantized(q: QTensor, grid: str) -> QTensor:
    return quantize(decode(q), plugins.find("grids", grid))


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


def test_an_adapter_of_our_own_needs_only_delta() -> None:
    """The generic gradient: a method is one file with one formula."""

    class Shift(Adapter):
        writes = frozenset({Slot.SCALE})

        def __init__(self, scale: torch.Tensor) -> None:
            super().__init__()
            self.s = nn.Parameter(torch.full((1,), 0.5))
            self.scale = scale

        def delta(self, q: QTensor, rows: slice) -> Delta:
            return Delta(scale=q.scale * self.s)

    layer = layer_for("scale", "q4_0")
    layer.attach(Shift(layer.scale))
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    layer(x).square().sum().backward()
    steps = decode(layer.q.replace(scale=torch.ones_like(layer.scale)))
    s = torch.full((1,), 0.5, requires_grad=True)
    wide = (layer.scale + layer.scale * s).repeat_interleave(32, 1)
    (x @ (steps * wide).T).square().sum().backward()
    found, expected = float(layer.adapter.s.grad), float(s.grad)  # type: ignore[arg-type]
    assert abs(found - expected) < 1e-3 * abs(expected)  # bounded: f16 scales in the forward, float sums
    assert len(trainable(nn.ModuleDict({"layer": layer}))) == 1
