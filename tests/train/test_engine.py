"""The layer's promises: packed at rest, decoded in tiles, one cast, the same bits with checkpointing, nothing kept."""

from typing import Any

import numpy as np
import pytest
import torch
from on_grid import on_grid
from torch import nn

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.gradient import Flow, pullback
from edgeqaf.grid import Slot
from edgeqaf.method import Course, adapter_state, method_of
from edgeqaf.modeling import build
from edgeqaf.nn import FEW, QLinear, qlinears
from edgeqaf.packed import lanes, pack, tiles, unpack
from edgeqaf.qtensor import QTensor, decode

GRIDS = plugins.names("grids")
LOSSLESS = [name for name in plugins.names("adapters") if plugins.find("adapters", name).lossless]
METHODS = [name for name in plugins.names("adapters") if name not in ("qa_hira", "qa_lora")]  # those need a zero


def layer_on(name: str, out: int = 24, bias: bool = False) -> QLinear:
    grid = plugins.find("grids", name)
    weights = np.random.default_rng(0).standard_normal((out, max(64, grid.unit))).astype(np.float32)
    return QLinear(on_grid(weights, grid), torch.arange(out).float() if bias else None)


@pytest.mark.parametrize("name", GRIDS)
def test_packing_is_a_bijection_over_every_byte(name: str) -> None:
    grid = plugins.find("grids", name)
    row = grid.block // lanes(grid)
    packed = torch.arange(256, dtype=torch.uint8).repeat_interleave(row).view(256, row)
    codes = unpack(packed, grid)
    assert codes.shape == (256, grid.block)
    if grid.hi - grid.lo + 1 == 2 ** (8 // lanes(grid)):  # every pattern of bits is a code
        assert torch.equal(pack(codes, grid), packed)
        assert set(codes.flatten().tolist()) == set(range(grid.lo, grid.hi + 1))


@pytest.mark.parametrize(("out", "inputs"), [(1, 64), (7, 2**20), (5, 2**21), (3, 2**22), (4096, 4096)])
def test_tiles_cover_the_rows_once_in_order_and_stay_small(out: int, inputs: int) -> None:
    found = list(tiles(out, inputs))
    assert [r for rows in found for r in range(rows.start, rows.stop)] == list(range(out))
    assert all((rows.stop - rows.start) * inputs <= 2**21 or rows.stop - rows.start == 1 for rows in found)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_casts_the_float32_weight_once(name: str, dtype: torch.dtype) -> None:
    layer = layer_on(name, bias=True)
    x = torch.randn(FEW, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.linear(x.to(dtype), decode(layer.q).to(dtype)) + layer.bias.to(dtype)  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype):
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x.to(dtype)), expected)


@pytest.mark.parametrize("name", LOSSLESS)
def test_autocast_changes_no_code(name: str) -> None:
    """What decides how a code rounds is computed in the types that say so, whatever the forward runs in."""
    method, options = method_of(name, {})
    layer = layer_on("q4_1")
    layer.attach(method.layer(layer.base, options, torch.Generator().manual_seed(0)))  # type: ignore[attr-defined]
    for parameter in layer.adapter.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    layer.changed()
    x = torch.randn(FEW, 64, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        y, inside = layer(x), layer.folded()
    layer.changed()
    outside = layer.folded()
    for part in ("codes", "scale", "zero"):
        assert torch.equal(getattr(inside, part), getattr(outside, part))
    bare = nn.functional.linear(x.bfloat16(), decode(outside).bfloat16())
    assert torch.equal(y, bare)


def test_gradient_of_the_input_is_the_weights_own() -> None:
    layer = layer_on("q4_0")
    x = torch.randn(9, 64, requires_grad=True)
    dy = torch.randn(9, 24)
    layer(x).backward(dy)
    assert torch.equal(x.grad, dy @ decode(layer.q))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GRIDS)
def test_pullback_is_the_derivative_of_decode(name: str) -> None:
    """Against autograd through `decode` itself, in the middle of the grid; none further out at its ends."""
    grid = plugins.find("grids", name)
    q = layer_on(name).q
    codes = q.codes.float().clamp(grid.lo + 1, grid.hi - 1).requires_grad_()
    scale = q.scale.clone().requires_grad_()
    zero = None if q.zero is None else q.zero.clamp(grid.lo + 1, grid.hi - 1).requires_grad_()
    grad = torch.randn(*q.shape, generator=torch.Generator().manual_seed(1))
    decode(QTensor(grid, codes, scale, zero)).backward(grad)
    inside = QTensor(grid, codes.detach().to(torch.int8), q.scale, None if zero is None else zero.detach())
    found = pullback(inside, grad, grid.slots)
    assert torch.equal(found.codes, codes.grad)
    assert found.slots == grid.slots
    for ours, theirs in ((found.scale, scale.grad), (found.zero, None if zero is None else zero.grad)):
        if theirs is not None and ours is not None:  # bounded: sums of 32 float32 products in another order
            assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    steps = found.codes
    ends = inside.replace(codes=torch.where(steps > 0, grid.lo, grid.hi).to(torch.int8))
    assert not pullback(ends, grad, frozenset({Slot.CODES})).codes.any()
    assert torch.equal(pullback(ends, -grad, frozenset({Slot.CODES})).codes, -steps)


def trained(
    tiny: QModel, method: str, checkpointing: bool, steps: int = 4, inside: bool | None = None
) -> dict[str, torch.Tensor]:
    """The state after some steps; inside: in bfloat16 by autocast, backward within its context or after it."""
    made, options = method_of(method, {})
    model: Any = made.attach(build(tiny.config, tiny.tensors), options, 0).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer, schedule = made.optimizer(model, options, Course(4))
    for step in range(steps):
        ids = torch.randint(3, 400, (2, 24), generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16, enabled=inside is not None):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return adapter_state(model)


@pytest.mark.parametrize("method", [name for name in METHODS if name in LOSSLESS])
def test_autocast_around_backward_trains_the_same_bits(method: str, tiny_model: QModel) -> None:
    """Inside the context torch would take every product of backward in 16 bits too."""
    after, within = (trained(tiny_model, method, False, inside=inside) for inside in (False, True))
    assert all(torch.equal(after[name], within[name]) for name in after)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_trains_the_same_bits(method: str, tiny_model: QModel) -> None:
    plain, checkpointed = trained(tiny_model, method, False), trained(tiny_model, method, True)
    start = trained(tiny_model, method, False, steps=0)
    assert any(not torch.equal(plain[name], start[name]) for name in plain)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@pytest.mark.parametrize("method", METHODS)
def test_autograd_keeps_no_weights(method: str, tiny_model: QModel) -> None:
    """What a forward saves for backward are activations: nothing of a layer's [out, in]."""
    made, options = method_of(method, {})
    model: Any = made.attach(build(tiny_model.config, tiny_model.tensors), options, 0).train()
    made.optimizer(model, options, Course(4))
    shapes = {tuple(sorted((layer.out_features, layer.in_features))) for layer in qlinears(model).values()}
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    ids = torch.arange(3 * 37).reshape(3, 37)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, labels=ids)
    assert kept
    assert not [shape for shape in kept if len(shape) == 2 and tuple(sorted(shape)) in shapes]


def test_flow_in_bfloat16_is_used_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(torch.randn(8, 64), torch.randn(8, 24))
    for fast in (True, False):
        monkeypatch.setattr("edgeqaf.gradient.multiplies_bf16", lambda device, fast=fast: fast)
        assert flow.narrowed().x.dtype is (torch.bfloat16 if fast else torch.float32)
        assert flow.narrowed().weight_gradient(slice(0, 24)).dtype is torch.float32
