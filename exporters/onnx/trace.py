"""The decoder's program as transformers defines it, traced once for each kind of layer.

torch traces the model with every weight as an *input* of the graph, so no weight needs to exist
while tracing: examples are one zero expanded to the right shape. And it traces one layer of each
kind only (two where layers with a sliding window and layers without one alternate), between marks,
since layers of one kind are alike: `exporters.onnx.graph` stacks copies. That keeps the cost of a
trace (seconds) independent of the size of the model.
"""

import functools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.source import EMBEDDING, HEAD
from exporters.onnx.attention import simplify
from exporters.onnx.shorten import shorten

PRIMITIVES = 21  # the first opset with blocked DequantizeLinear: attention, norms and rotations in many small steps
OPERATORS = 23  # the first with an operator for each of them, which runtimes compute at once
INPUTS = ("input_ids", "attention_mask", "position_ids")
HIDDEN = "hidden.{}"  # the marks: what traced layer 0, 1, .. is given; the last one is what the last layer gives


@dataclass(frozen=True)
class Traced:
    """The program of one layer of each kind, chained, and what surrounds them.

    graph:    onnx.GraphProto whose inputs are `INPUTS`, the caches of the traced layers and every weight.
    weights:  name -> shape of each weight that is an input; a tied head is not among them.
    layers:   for each layer of the model, the traced layer that it is a copy of.
    kv_heads, head_dim, vocab: sizes that the graph's inputs and outputs declare.
    """

    graph: Any
    weights: Mapping[str, tuple[int, ...]]
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    vocab: int


def trace(config: Mapping[str, Any], opset: int = PRIMITIVES) -> Traced:
    """Trace the architecture of ``config`` (a Hugging Face config.json) with a key-value cache, in `OPERATORS` or not.

    Raises Refused for a config that transformers cannot build or torch cannot trace.
    """
    with _refusing():
        kinds = _kinds(config)
        distinct = list(dict.fromkeys(kinds))
        few = {**config, "num_hidden_layers": len(distinct)}
        traced = _trace(json.dumps(few | ({"layer_types": distinct} if distinct[0] else {}), sort_keys=True), opset)
    return replace(traced, layers=tuple(distinct.index(kind) for kind in kinds))


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """The kind of each layer, as transformers resolves it; "" throughout for a family that has but one."""
    from transformers import CONFIG_MAPPING

    settings = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(dict(config)))
    return list(getattr(settings, "layer_types", None) or [""] * settings.num_hidden_layers)


@contextmanager
def _refusing() -> Iterator[None]:
    """Refuse whatever goes wrong: an untrusted config can fail anywhere in transformers or torch."""
    try:
        with _quiet():
            yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(
            f"the model that config.json describes cannot be traced: {reason}",
            "check config.json; run with the transformers and torch versions in constraints.txt",
        ) from error


@functools.lru_cache(maxsize=4)  # the grids of a model differ, its program does not
def _trace(config_json: str, opset: int) -> Traced:
    import onnx_ir
    import torch

    from edgeqaf.modeling import skeleton
    from exporters.onnx import plain

    model = skeleton(json.loads(config_json), attention=plain.NAMES[opset]).requires_grad_(False)
    plain.rotate_by_length(model)
    config = model.config
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings:
        del shapes[HEAD]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    batch, past, new, layers = 2, 3, 5, range(config.num_hidden_layers)
    zero = torch.zeros(())
    # Each example is a tensor of its own: torch takes two uses of one object for one input.
    ids, positions = (torch.zeros(batch, new, dtype=torch.long) for _ in range(2))
    mask = torch.ones(batch, past + new, dtype=torch.long)
    parts = [f"{i}.{part}" for i in layers for part in ("key", "value")]
    cache = [zero.expand(batch, config.num_key_value_heads, past, head_dim) for _ in parts]
    arguments = (ids, mask, positions, cache, [zero.expand(shape) for shape in shapes.values()])
    with torch.no_grad():
        exported = torch.export.export(
            _flat(model, tuple(shapes)), arguments, dynamic_shapes=_dynamic(len(cache), len(shapes)), strict=False
        )
        program = torch.onnx.export(
            exported,
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[*INPUTS, *(f"past_key_values.{part}" for part in parts), *shapes],
            output_names=["logits", *(f"present.{part}" for part in parts), *_marks(len(layers))],
        )
    assert program is not None
    if opset == OPERATORS:
        simplify(program.model, config.num_attention_heads, config.num_key_value_heads)
    graph = onnx_ir.to_proto(program.model).graph
    shorten(graph)
    return Traced(graph, shapes, tuple(layers), config.num_key_value_heads, head_dim, config.vocab_size)


def _marks(layers: int) -> list[str]:
    return [HIDDEN.format(i) for i in range(layers + 1)]


def _dynamic(caches: int, weights: int) -> tuple[Any, ...]:
    import torch

    dim = torch.export.Dim
    batch, new, past = dim("batch_size"), dim("sequence_length"), dim("past_sequence_length")
    tokens, cache = {0: batch, 1: new}, {0: batch, 2: past}
    return tokens, {0: batch, 1: dim.DYNAMIC}, tokens, [cache] * caches, [{}] * weights


def _flat(model: Any, names: tuple[str, ...]) -> Any:
    """A module of flat inputs and outputs that runs ``model`` with weights given by the caller."""
    import torch
    from transformers import DynamicCache

    marks: list[Any] = []
    layers = model.model.layers
    layers[0].register_forward_pre_hook(lambda _, arguments: marks.append(arguments[0]))
    for layer in layers:
        layer.register_forward_hook(lambda _, arguments, output: marks.append(output))

    class Flat(torch.nn.Module):
        def forward(self, ids: Any, mask: Any, positions: Any, past: Any, weights: Any) -> tuple[Any, ...]:
            cache = DynamicCache()  # whole: what a window leaves out is masked, never dropped
            for i in range(len(layers)):
                cache.update(past[2 * i], past[2 * i + 1], i)
            named = dict(zip(names, weights, strict=True))
            named.setdefault(HEAD, named[EMBEDDING])
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            marks.clear()
            result = torch.func.functional_call(model, named, (), {**inputs, "past_key_values": cache})
            present = [part for layer in cache.layers for part in (layer.keys, layer.values)]
            return result.logits, *present, *marks

    return Flat().eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says on every run whatever the model."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # "torchvision is not installed"
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
