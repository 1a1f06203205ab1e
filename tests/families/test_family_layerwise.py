"""Layer by layer, every family's logits are those of the whole model, in bits, whatever its tensors are."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from family_models import CASES
from on_grid import on_grid

from edgeqaf import plugins, witness
from edgeqaf.digest import Floats, Tensor
from edgeqaf.errors import Refused
from edgeqaf.layerwise import LAYER
from edgeqaf.method import method_of
from edgeqaf.modeling import build
from edgeqaf.nn import qlinears
from edgeqaf.source import EMBEDDING, HEAD

Tensors = Mapping[str, Tensor]


def linears(tensors: Mapping[str, Floats]) -> dict[str, Tensor]:
    """The linears on a grid, where their rows fit."""
    grid = plugins.find("grids", "q4_0")
    fit = {n for n, t in tensors.items() if LAYER.match(n) and t.ndim == 2 and grid.fits(t.shape[1])}
    return {n: on_grid(t, grid) if n in fit else t for n, t in tensors.items()}


def both_ends(tensors: Mapping[str, Floats]) -> dict[str, Tensor]:
    """And the two ends on another."""
    grid = plugins.find("grids", "q8_0")
    return linears(tensors) | {n: on_grid(tensors[n], grid) for n in (EMBEDDING, HEAD) if n in tensors}


def adapt(model: torch.nn.Module) -> None:
    """An adapter for each quantized layer in a model, in a state that follows from the layer alone."""
    method, options = method_of("codes+scale", {})
    method.attach(model, options, 0)
    for layer in qlinears(model).values():
        generator = torch.Generator().manual_seed(layer.in_features + layer.out_features)
        codes, scale = layer.adapter.parts()
        codes.codes.bitwise_xor_(torch.randint(256, codes.codes.shape, generator=generator).bitwise_and_(0x11))
        scale.s.data = torch.randn(scale.s.shape, generator=generator) / 8
        layer.changed()


def prompts(made: object) -> list[list[int]]:
    tokens = made.tokens  # type: ignore[attr-defined]
    return [tokens, tokens[:7], [tokens[3]]]


@pytest.mark.parametrize("attach", [None, adapt], ids=["bare", "adapted"])
@pytest.mark.parametrize("quantize", [dict, linears, both_ends], ids=["float", "linears", "ends"])
@pytest.mark.parametrize("name", CASES)
def test_layer_by_layer_are_the_whole_models_logits(
    name: str, quantize: Callable[[Tensors], Tensors], attach: Callable | None, make: Callable
) -> None:
    made = make(name)
    tensors = quantize(made.model.tensors)
    whole = build(made.config, tensors)
    if attach is not None:
        attach(whole)
    expected = [witness.logits(whole, ids) for ids in prompts(made)]
    found = witness.layerwise(made.config, tensors, prompts(made), attach)
    assert all(np.isfinite(one).all() for one in found)
    assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]


class Asked(Mapping[str, Tensor]):
    """Tensors that note in which order they were asked for."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors, self.order = tensors, list[str]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        self.order.append(name)
        return self.tensors[name]


@pytest.mark.parametrize("quantize", [dict, linears, both_ends], ids=["float", "linears", "ends"])
def test_a_tensor_is_read_once_and_layers_one_after_the_other(quantize: Callable, make: Callable) -> None:
    made = make("gemma 3 1B")
    asked = Asked(quantize(made.model.tensors))
    witness.layerwise(made.config, asked, prompts(made))
    assert asked.order[-1] == EMBEDDING  # for the head, once nothing else is needed
    assert sorted(asked.order[:-1]) == sorted(asked.tensors)
    depths = [int(found[1]) for name in asked.order if (found := LAYER.match(name))]
    assert depths == sorted(depths)


@pytest.mark.parametrize("name", [EMBEDDING, "model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_missing_or_ill_shaped_tensor_is_named_as_for_the_whole_model(name: str, make: Callable) -> None:
    made = make("qwen3 1.7B")
    rest = {n: t for n, t in made.model.tensors.items() if n != name}
    short = {**rest, name: made.model.tensors[name][:-1]}
    extra = {**made.model.tensors, "model.layers.2.x": np.ones(3, np.float32)}
    cases = (
        (rest, f"no tensor {name} "),
        (short, f"{name} has shape "),
        (extra, r"model.layers.2.x has shape \[3\]"),
    )
    for tensors, says in cases:
        for way in (build, lambda config, tensors: witness.layerwise(config, tensors, prompts(made))):
            with pytest.raises(Refused, match=says):
                way(made.config, tensors)


LARGE = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30,) * 2)  # an embedding of this model takes 4 GB
from edgeqaf.modeling import skeleton
model = skeleton({
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 2,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
})
assert all(p.is_meta for p in model.parameters()) and not any(b.is_meta for b in model.buffers())
"""


def test_a_skeleton_asks_the_system_for_no_weight_of_a_large_model() -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", LARGE], env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
