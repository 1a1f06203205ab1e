"""Methods started from what rounding the float weights left over."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeqaf import checkpoint, plugins
from edgeqaf.adapters.codes import Codes
from edgeqaf.adapters.lowrank import LowRank
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused
from edgeqaf.finetune import Settings, finetune
from edgeqaf.grid import Zero
from edgeqaf.merge import merge
from edgeqaf.method import adapter_state, method_of, parts
from edgeqaf.modeling import build
from edgeqaf.nn import QLinear, qlinears
from edgeqaf.packed import unpack
from edgeqaf.qtensor import QTensor, decode
from edgeqaf.residual import residual
from edgeqaf.run import load_run
from edgeqaf.source import FloatModel


@pytest.mark.parametrize("grid", plugins.names("grids"))
def test_residual_by_hand(grid: str) -> None:
    """A weight a quarter of a step above its own, half a step below, far off, and one with no step to measure by."""
    g = plugins.find("grids", grid)
    zero = None if g.zero is Zero.NONE else np.ones((1, 2), np.float32)
    q = QTensor(g, np.full((1, 2 * g.block), g.lo + 1, np.int8), np.array([[0.5, 0.0]], np.float32), zero)
    weights = torch.from_numpy(decode(q).copy())
    weights[0, :3] += torch.tensor([0.125, -0.25, 9.0])
    weights[0, g.block + 8] += 1
    found = residual(QLinear(q).base, weights)
    assert found[0, :4].tolist() == [32, -64, 63, 0]
    assert not found[0, 3:].any()


METHODS = [n for n in plugins.names("adapters") if "residual" in plugins.find("adapters", n).options.model_fields]


def test_a_fresh_run_measures_it_and_a_finished_one_brings_it(
    tiny_model: QModel, tiny_float_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(f'{{"prompt": "Say {i}.", "completion": "{i}"}}\n' for i in range(40)), "utf-8")
    options = {"rank": 4, "lr": 0.5, "residual": str(tiny_float_model)}
    quick: dict[str, Any] = {"steps": 4, "batch": 4, "save_every": 2, "max_length": 48, "threads": 1}
    run = finetune(tiny_model.folder, data, tmp_path / "run", Settings(method="lowrank", options=options, **quick))
    _, model, _, _ = load_run(tmp_path / "run")
    floats = FloatModel(tiny_float_model)
    names = {id(layer): name for name, layer in qlinears(model).items()}
    for layer, part in parts(model, LowRank):
        expected = residual(layer.base, torch.from_numpy(floats[names[id(layer)]]))
        assert torch.equal(part.start, expected)
        assert expected.any()
    merged, _ = merge(tmp_path / "run", tmp_path / "merged")
    assert {n: checkpoint.load(tmp_path / "merged").digests()[n] for n in run["folded"]} == run["folded"]
    assert merged.root != tiny_model.root


@pytest.mark.parametrize("name", METHODS)
def test_step_zero_is_the_base_with_it_too(name: str, tiny_model: QModel, tiny_float_model: Path) -> None:
    method, options = method_of(name, {"residual": str(tiny_float_model)})
    model = method.attach(build(tiny_model.config, tiny_model.tensors), options, 0)
    before = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
    method.begin(model, options)
    for layer in qlinears(model).values():
        assert torch.equal(layer.folded().codes, layer.q.codes)
    assert any(not torch.equal(before[key], tensor) for key, tensor in adapter_state(model).items())


def test_codes_take_it_for_their_remainders_and_move_sooner(tiny_model: QModel, tiny_float_model: Path) -> None:
    """A gradient of one sign, 40/128 of a step: what lay near the middle crosses it, and nothing else does."""
    method, options = method_of("codes", {"residual": str(tiny_float_model), "lr": 0.3125})
    model = method.attach(build(tiny_model.config, tiny_model.tensors), options, 0)
    method.begin(model, options)
    floats = FloatModel(tiny_float_model)
    names = {layer: name for name, layer in qlinears(model).items()}
    for layer, part in parts(model, Codes):
        left = residual(layer.base, torch.from_numpy(floats[names[layer]]))
        assert torch.equal(part.remainder, left)
        part.move(slice(0, layer.out_features), torch.full((layer.out_features, layer.in_features), 40.0))
        inside = layer.q.codes > layer.grid.lo
        moved = unpack(part.codes, layer.grid) - layer.q.codes
        assert torch.equal(moved[inside] == -1, left[inside] < -24)
        assert moved[inside].any()
        assert not moved[inside].all()


@pytest.mark.parametrize("name", METHODS)
def test_another_model_is_refused(name: str, tiny_model: QModel) -> None:
    other = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
    method, options = method_of(name, {"residual": str(other)})
    model = method.attach(build(tiny_model.config, tiny_model.tensors), options, 0)
    with pytest.raises(Refused, match=r"storyteller-6m has no model\.layers.* of shape \[64, 96\]"):
        method.begin(model, options)
