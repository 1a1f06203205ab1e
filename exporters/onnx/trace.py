"""The decoder's program as transformers defines it, traced once for one layer.

torch traces the model with every weight as an *input* of the graph, so no weight needs to exist
while tracing: examples are one zero expanded to the right shape. And it traces one layer only,
between two marks, since the layers of a decoder are alike: `exporters.onnx.graph` stacks copies.
That keeps the cost of a trace (seconds) independent of the size of the model.
"""

import functools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.source import EMBEDDING, HEAD

OPSET = 21  # the first with blocked DequantizeLinear; onnxruntime-web and -genai read it as well
INPUTS = ("input_ids", "attention_mask", "position_ids")
LAYER_INPUT, LAYER_OUTPUT = "layer.input", "layer.output"  # the two marks


@dataclass(frozen=True)
class Traced:
    """The program of one layer and what surrounds it.

    graph:    onnx.GraphProto whose inputs are `INPUTS`, the cache of layer 0 and every weight.
    weights:  name -> shape of each weight that is an input; a tied head is not among them.
    kv_heads, head_dim, vocab: sizes that the graph's inputs and outputs declare.
    """

    graph: Any
    weights: Mapping[str, tuple[int, ...]]
    kv_heads: int
    head_dim: int
    vocab: int


def trace(config: Mapping[str, Any]) -> Traced:
    """Trace the architecture of ``config`` (a Hugging Face config.json) with a key-value cache.

    Raises Refused for a config that transformers cannot build or torch cannot trace.
    """
    return _trace(json.dumps({**config, "num_hidden_layers": 1}, sort_keys=True))


@functools.lru_cache(maxsize=4)  # the grids of a model differ, its program does not
def _trace(config_json: str) -> Traced:
    try:
        with _quiet():
            return _traced(json.loads(config_json))
    except Exception as error:  # an untrusted config can fail anywhere in transformers or torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(
            f"the model that config.json describes cannot be traced: {reason}",
            "check config.json; run with the transformers and torch versions in constraints.txt",
        ) from error


def _traced(config_dict: dict[str, Any]) -> Traced:
    import onnx_ir
    import torch

    from edgeqaf.modeling import skeleton

    model = skeleton(config_dict, attention="eager").requires_grad_(False)
    config = model.config
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings:
        del shapes[HEAD]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    batch, past, new = 2, 3, 5
    zero = torch.zeros(())
    # Each example is a tensor of its own: torch takes two uses of one object for one input.
    ids, positions = (torch.zeros(batch, new, dtype=torch.long) for _ in range(2))
    mask = torch.ones(batch, past + new, dtype=torch.long)
    cache = tuple(zero.expand(batch, config.num_key_value_heads, past, head_dim) for _ in range(2))
    arguments = (ids, mask, positions, cache, tuple(zero.expand(shape) for shape in shapes.values()))
    with torch.no_grad():
        exported = torch.export.export(
            _flat(model, tuple(shapes)), arguments, dynamic_shapes=_dynamic(len(shapes)), strict=False
        )
        program = torch.onnx.export(
            exported,
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[*INPUTS, "past_key_values.0.key", "past_key_values.0.value", *shapes],
            output_names=["logits", "present.0.key", "present.0.value", LAYER_INPUT, LAYER_OUTPUT],
        )
    assert program is not None
    graph = onnx_ir.to_proto(program.model).graph
    return Traced(graph, shapes, config.num_key_value_heads, head_dim, config.vocab_size)


def _dynamic(weights: int) -> tuple[Any, ...]:
    import torch

    dim = torch.export.Dim
    batch, new, past = dim("batch_size"), dim("sequence_length"), dim("past_sequence_length")
    tokens, cache = {0: batch, 1: new}, {0: batch, 2: past}
    return tokens, {0: batch, 1: dim.DYNAMIC}, tokens, (cache, cache), ({},) * weights


def _flat(model: Any, names: tuple[str, ...]) -> Any:
    """A module of flat inputs and outputs that runs ``model`` with weights given by the caller."""
    import torch
    from transformers import DynamicCache

    marks: dict[str, Any] = {}
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda _, arguments: marks.update(input=arguments[0]))
    layer.register_forward_hook(lambda _, arguments, output: marks.update(output=output))

    class Flat(torch.nn.Module):
        def forward(self, ids: Any, mask: Any, positions: Any, past: Any, weights: Any) -> tuple[Any, ...]:
            cache = DynamicCache(config=model.config)
            cache.update(past[0], past[1], 0)
            named = dict(zip(names, weights, strict=True))
            named.setdefault(HEAD, named[EMBEDDING])
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            result = torch.func.functional_call(model, named, (), {**inputs, "past_key_values": cache})
            present = cache.layers[0]
            return result.logits, present.keys, present.values, marks.pop("input"), marks.pop("output")

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
