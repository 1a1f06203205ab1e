"""Copies of the traced layer, chained from mark to mark between what comes before and after it."""

import re
from collections.abc import Iterator
from typing import Any

from exporters.onnx.trace import LAYER_INPUT, LAYER_OUTPUT, Traced

FIRST = re.compile(r"\b(layers|past_key_values|present)\.0\.")


def at(name: str, layer: int) -> str:
    """A name that belongs to the traced layer, as it is called in copy ``layer``."""
    return FIRST.sub(lambda match: f"{match[1]}.{layer}.", name)


def stack(traced: Traced, layers: int) -> Iterator[Any]:
    """Nodes before the layer, the layer ``layers`` times, nodes after it; metadata removed."""
    nodes = [clean(node) for node in traced.graph.node]
    own = {name for name in traced.weights if FIRST.search(name)}
    after = _reached(nodes, {LAYER_OUTPUT})
    layer = _reached(nodes, {LAYER_INPUT, *own}) - after
    made = {value for i in layer for value in nodes[i].output}
    yield from (node for i, node in enumerate(nodes) if i not in layer | after)
    for copy in range(layers):
        yield from (_copy(nodes[i], copy, made) for i in sorted(layer))
    last = {LAYER_OUTPUT: _value(LAYER_OUTPUT, layers - 1, made)}
    for node in (nodes[i] for i in sorted(after)):
        leaked = made.intersection(node.input) - {LAYER_OUTPUT}
        assert not leaked, f"the traced layer leaks {leaked}"
        node.input[:] = [last.get(value, value) for value in node.input]
        yield node


def _reached(nodes: list[Any], start: set[str]) -> set[int]:
    """Indices of the nodes that depend on one of the values ``start``."""
    values, found = set(start), set()
    for i, node in enumerate(nodes):
        if values.intersection(node.input):
            values.update(node.output)
            found.add(i)
    return found


def _copy(node: Any, layer: int, made: set[str]) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = f"layers.{layer}/{node.name}"
    copy.output[:] = [_value(value, layer, made) for value in node.output]
    copy.input[:] = [_value(value, layer, made) for value in node.input]
    return copy


def _value(value: str, layer: int, made: set[str]) -> str:
    if value == LAYER_INPUT:
        return value if layer == 0 else _value(LAYER_OUTPUT, layer - 1, made)
    if FIRST.search(value):  # a weight or a cache, named after its layer
        return at(value, layer)
    return f"layers.{layer}/{value}" if value in made else value


def clean(proto: Any) -> Any:
    """A copy without what torch leaves in it: stack traces with paths, source lines, notes."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.ClearField("metadata_props")
    copy.ClearField("doc_string")
    return copy
