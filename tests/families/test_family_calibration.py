"""A calibration text goes through every family layer by layer as transformers' whole model takes it, in bits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from family_models import CASES

from edgeqaf.calibration import Calibration
from edgeqaf.modeling import build
from edgeqaf.source import FloatModel


@pytest.mark.parametrize("name", CASES)
def test_layer_by_layer_is_the_whole_model(name: str, make: Callable) -> None:
    made = make(name)
    source, tokens = FloatModel(made.model.folder), torch.tensor([made.tokens, made.tokens[::-1]])
    calibration = Calibration(source.config, source, tokens)
    last = len(calibration) - 1
    linears = [n for n in source if source.is_linear(n) and n.startswith(f"model.layers.{last}.")]
    for index in range(last):
        calibration.through(index, {})
    found = {n: hessian for sharers, hessian in calibration.hessians(last, linears) for n in sharers}
    calibration.through(last, {})

    whole, ends = build(made.config, made.model.tensors), []
    wanted = {n: np.zeros((source.shape(n)[1],) * 2) for n in linears}
    whole.model.norm.register_forward_pre_hook(lambda _, given: ends.append(given[0]))
    for n in linears:

        def add(_: torch.nn.Module, given: tuple[torch.Tensor], n: str = n) -> None:
            wanted[n] += (given[0][0].T @ given[0][0]).double().numpy()

        whole.get_submodule(n.removesuffix(".weight")).register_forward_pre_hook(add)
    with torch.no_grad():
        for row in tokens:
            whole.model(row[None], use_cache=False)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(calibration._hidden, ends, strict=True))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[n], wanted[n]) for n in linears)
