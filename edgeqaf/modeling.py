"""From integers to a transformers model: the architecture's own code, with our linears in it."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from edgeqaf.digest import Tensor
from edgeqaf.ends import QEmbedding, place
from edgeqaf.errors import Refused
from edgeqaf.packed import Packed
from edgeqaf.qtensor import QTensor
from edgeqaf.source import EMBEDDING, HEAD, is_linear, is_tied


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A float32 causal language model on the CPU, in eval mode, nothing in it trainable.

    config:  a Hugging Face ``config.json``.
    tensors: logical name -> QTensor or float32 array; every parameter must be there.
    """
    require_plausible(config, len(tensors))
    model = skeleton(config)
    tied = head_of(config, tensors) == EMBEDDING
    for name in sorted(tensors):
        tensor = tensors[name]
        put(model, name, tensor if isinstance(tensor, QTensor) else tensor.copy())
        if name == EMBEDDING and tied and isinstance(tensor, QTensor):
            put(model, HEAD, tensor)
    if not isinstance(model.get_input_embeddings(), QEmbedding):
        model.tie_weights()
    require_whole(model, config, tensors)
    built: nn.Module = model
    return built


def put(model: Any, name: str, tensor: Tensor | Packed) -> None:
    """Put a tensor in the place of the parameter ``name`` of a `skeleton`; a float array is taken as it is, not copied.

    A bias comes before its weight, as names are sorted. Raises Refused for a name or shape that the model has not.
    """
    path, _, leaf = name.rpartition(".")
    try:
        room = tuple(model.get_parameter(name).shape)
    except AttributeError:
        room = ()
    if room != tuple(tensor.shape):
        raise Refused(
            f"{name} has shape {list(tensor.shape)}, config.json implies {list(room)}",
            "config.json and the tensors must belong to one model",
        )
    if isinstance(tensor, (QTensor, Packed)):
        bias = getattr(model.get_submodule(path), "bias", None)
        place(model, name, tensor, linear=is_linear(model.config.model_type, name), bias=bias)
    else:
        setattr(model.get_submodule(path), leaf, nn.Parameter(torch.from_numpy(tensor), requires_grad=False))


def head_of(config: Mapping[str, Any], names: Collection[str]) -> str:
    """Which of a model's tensors the head reads: its own, or the embedding."""
    return EMBEDDING if is_tied(config) and HEAD not in set(names) else HEAD


def require_whole(model: nn.Module, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse tensors that leave a parameter of the model without a value."""
    here = {*names, *([HEAD] if head_of(config, names) == EMBEDDING else [])}
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta and name not in here]
    if missing:
        raise Refused(
            f"no tensor {', '.join(missing[:3])} for this {config['model_type']} model", "the folder is incomplete"
        )


def skeleton(config: Mapping[str, Any], attention: str | None = None) -> Any:
    """The architecture in eval mode, every parameter on the meta device, its computed buffers (rope tables) real.

    attention: transformers' name of an implementation; by default its own choice, the fastest that is right for
    the architecture (sdpa has no softcap, which Gemma 2 needs).

    Raises Refused for a config that transformers cannot build a model from.
    """
    try:
        settings = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(dict(config)))
        settings.dtype = torch.float32
        with init_empty_weights(include_buffers=False), _Unallocated():
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation=attention)
    except Exception as error:  # transformers raises what happens to go wrong first
        raise Refused(
            f"config.json describes no model: {type(error).__name__}: {error}", "it was damaged or edited; restore it"
        ) from None
    return model.eval()


class _Unallocated(TorchFunctionMode):
    """Parameters that are made empty are made on the meta device at once; `init_empty_weights` moves them there once
    they have their memory, of which an embedding may need more than there is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}) | ({"device": "meta"} if function is torch.empty else {}))


def require_plausible(config: Mapping[str, Any], tensors: int) -> None:
    """A layer count beyond the number of tensors would take forever to build."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or not 0 < layers <= tensors:
        raise Refused(
            f"config.json describes no model: {layers!r} layers in {tensors} tensors",
            "it was damaged or edited; restore it",
        )
