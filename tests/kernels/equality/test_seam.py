"""Callers get the kernel by asking for the function; a training with kernels ends in the bits of one without."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrices import DEVICE, FAMILY, kernel
from torch import nn

from edgeqaf import kernels, packed, plugins
from edgeqaf.adapters import codes, lowrank
from edgeqaf.method import Course, method_of
from edgeqaf.nn import QLinear
from edgeqaf.quantizers.rtn import quantize

REFERENCES: dict[str, Any] = {
    "weights": packed.weights,
    "squares": codes.squares,
    "move": codes.move,
    "fold_product": lowrank.fold_product,
}


def test_every_kernel_stands_in_for_a_function_of_its_signature() -> None:
    folder = Path(kernels.__file__).parent / FAMILY
    assert {file.stem for file in folder.glob("*.py")} - {"__init__", "lanes"} == REFERENCES.keys()
    for name, reference in REFERENCES.items():
        assert inspect.signature(kernel(name)) == inspect.signature(reference.__wrapped__), name


def test_kernels_run_here() -> None:
    assert kernels.family(DEVICE) == FAMILY


def trained(method_name: str, options: dict[str, Any], grid: str) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """(outputs and input gradients of four steps, adapter's state after them) of one layer."""
    weights = np.random.default_rng(0).standard_normal((24, 96)).astype(np.float32)
    layer = QLinear(quantize(weights, plugins.find("grids", grid)))
    method, chosen = method_of(method_name, options)
    model = method.attach(nn.ModuleDict({"layer": layer}), chosen, 0).to(DEVICE)
    optimizer, _ = method.optimizer(model, chosen, Course(4))
    seen = []
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(70, 96, generator=generator).to(DEVICE).requires_grad_()
        y = layer(x)
        y.backward(torch.randn(70, 24, generator=generator).to(DEVICE))
        optimizer.step()
        optimizer.zero_grad()
        seen += [y.detach().cpu(), x.grad.cpu()]  # type: ignore[union-attr]
    return seen, {name: value.clone() for name, value in layer.adapter.state_dict().items()}


@pytest.mark.parametrize("grid", ["q4_0", "q2_1", "q8_0", "uint4"])
@pytest.mark.parametrize("method", ["lowrank", "codes"])
def test_a_training_ends_in_the_same_bits(method: str, grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`squares` is the one kernel that may differ, by the order of a sum: here both take the reference's."""
    options: dict[str, Any] = {"rank": 4, "lr": 1.0} if method == "lowrank" else {"lr": 4.0}
    monkeypatch.setattr(codes, "squares", codes.squares.__wrapped__)  # type: ignore[attr-defined]
    used: set[str] = set()
    chosen: Callable[..., Any] = kernels.import_module
    monkeypatch.setattr(kernels, "import_module", lambda name: used.add(name) or chosen(name))
    with_kernels = trained(method, options, grid)
    needed = "weights", "fold_product" if method == "lowrank" else "move"
    assert used == {f"edgeqaf.kernels.{FAMILY}.{name}" for name in needed}
    monkeypatch.setattr(kernels, "family", lambda device: None)
    without = trained(method, options, grid)
    for found, expected in zip(with_kernels[0], without[0], strict=True):
        assert found.numpy().tobytes() == expected.numpy().tobytes()
    assert with_kernels[1].keys() == without[1].keys()
    for name, value in without[1].items():
        assert torch.equal(with_kernels[1][name], value), name
