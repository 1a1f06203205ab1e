"""From integers to a transformers model: the architecture's own code, with our linears in it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from edgeqaf.digest import Tensor
from edgeqaf.errors import Refused
from edgeqaf.nn import QLinear
from edgeqaf.qtensor import QTensor


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A float32 causal language model on the CPU, in eval mode, nothing in it trainable.

    config:  a Hugging Face ``config.json``.
    tensors: logical name -> QTensor or float32 array; every parameter must be there.
    """
    model = _skeleton(config, len(tensors))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted(tensors):
        if shapes.get(name) != tuple(tensors[name].shape):
            raise Refused(
                f"{name} has shape {list(tensors[name].shape)}, config.json implies {list(shapes.get(name, ()))}",
                "config.json and the tensors must belong to one model",
            )
        path, _, leaf = name.rpartition(".")
        parent, _, child = path.rpartition(".")
        tensor = tensors[name]
        if isinstance(tensor, QTensor):
            bias = tensors.get(f"{path}.bias")
            layer = QLinear(tensor, None if bias is None or isinstance(bias, QTensor) else torch.from_numpy(bias))
            setattr(model.get_submodule(parent), child, layer)
        else:
            value = nn.Parameter(torch.from_numpy(tensor.copy()), requires_grad=False)
            setattr(model.get_submodule(path), leaf, value)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise Refused(
            f"no tensor {', '.join(missing[:3])} for this {config['model_type']} model", "the folder is incomplete"
        )
    built: nn.Module = model.eval()
    return built


def _skeleton(config: Mapping[str, Any], tensors: int) -> Any:
    """The architecture with every parameter on the meta device and its computed buffers real."""
    try:
        if not 0 < int(config["num_hidden_layers"]) <= tensors:
            raise ValueError(f"{config['num_hidden_layers']} layers in {tensors} tensors")
        settings = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        settings.dtype = torch.float32
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation="sdpa")
    except Exception as error:  # transformers raises what happens to go wrong first
        raise Refused(
            f"config.json describes no model: {type(error).__name__}: {error}", "it was damaged or edited; restore it"
        ) from None
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # rotary tables, from the config alone
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, type(module)(config=settings))
    return model
