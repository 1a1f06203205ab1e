"""From integers to a transformers model: the architecture's own code, with our linears in it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from edgeqaf.digest import Tensor
from edgeqaf.ends import place
from edgeqaf.errors import Refused
from edgeqaf.qtensor import QTensor
from edgeqaf.source import EMBEDDING, HEAD, is_linear


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A float32 causal language model on the CPU, in eval mode, nothing in it trainable.

    config:  a Hugging Face ``config.json``.
    tensors: logical name -> QTensor or float32 array; every parameter must be there.
    """
    _require_plausible(config, len(tensors))
    model = skeleton(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted(tensors):
        if shapes.get(name) != tuple(tensors[name].shape):
            raise Refused(
                f"{name} has shape {list(tensors[name].shape)}, config.json implies {list(shapes.get(name, ()))}",
                "config.json and the tensors must belong to one model",
            )
        path, _, leaf = name.rpartition(".")
        tensor = tensors[name]
        if isinstance(tensor, QTensor):
            bias = tensors.get(f"{path}.bias")
            linear = is_linear(config["model_type"], name)
            place(
                model, name, tensor, linear=linear,
                bias=None if bias is None or isinstance(bias, QTensor) else torch.from_numpy(bias),
            )  # fmt: skip
            if name == EMBEDDING and HEAD not in tensors:  # the head reads the same integers
                place(model, HEAD, tensor, linear=False)
        else:
            value = nn.Parameter(torch.from_numpy(tensor.copy()), requires_grad=False)
            setattr(model.get_submodule(path), leaf, value)
    if not isinstance(tensors.get(EMBEDDING), QTensor):
        model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise Refused(
            f"no tensor {', '.join(missing[:3])} for this {config['model_type']} model", "the folder is incomplete"
        )
    built: nn.Module = model
    return built


def skeleton(config: Mapping[str, Any], attention: str | None = None) -> Any:
    """The architecture in eval mode, every parameter on the meta device, its computed buffers (rope tables) real.

    attention: transformers' name of an implementation; by default its own choice, the fastest that is right for
    the architecture (sdpa has no softcap, which Gemma 2 needs).

    Raises Refused for a config that transformers cannot build a model from.
    """
    try:
        settings = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(dict(config)))
        settings.dtype = torch.float32
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation=attention)
    except Exception as error:  # transformers raises what happens to go wrong first
        raise Refused(
            f"config.json describes no model: {type(error).__name__}: {error}", "it was damaged or edited; restore it"
        ) from None
    return model.eval()


def _require_plausible(config: Mapping[str, Any], tensors: int) -> None:
    """A layer count beyond the number of tensors would take forever to build."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or not 0 < layers <= tensors:
        raise Refused(
            f"config.json describes no model: {layers!r} layers in {tensors} tensors",
            "it was damaged or edited; restore it",
        )
