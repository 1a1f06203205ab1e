"""Copies of the traced layers, chained from mark to mark between what comes before and after them."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from exporters.onnx.trace import HIDDEN, Traced

LAYER = re.compile(r"\b(layers|past_key_values|present)\.(\d+)\.")


def at(name: str, layer: int) -> str:
    """A name that belongs to a traced layer, as it is called in layer ``layer`` of the model."""
    return LAYER.sub(lambda match: f"{match[1]}.{layer}.", name)


def layer_of(name: str) -> int | None:
    """The layer that a weight or a cache belongs to, None if it is of no layer."""
    match = LAYER.search(name)
    return None if match is None else int(match[2])


def copies(traced: Traced, name: str) -> list[str]:
    """The model's weights that a traced weight stands for: one for each layer that is a copy of its own."""
    kind = layer_of(name)
    return [name] if kind is None else [at(name, i) for i, copied in enumerate(traced.layers) if copied == kind]


def stack(traced: Traced) -> Iterator[Any]:
    """Nodes before the layers, for each layer a copy of the one it is like, nodes after them; metadata removed."""
    nodes = list(traced.graph.node)
    kinds = max(traced.layers) + 1
    # What depends on the input or the weights of a traced layer is in it, or comes later.
    reached = [_reached(nodes, {HIDDEN.format(kind), *_weights_from(traced, kind)}) for kind in range(kinds)]
    reached.append(_reached(nodes, {HIDDEN.format(kinds)}))
    for node in (node for i, node in enumerate(nodes) if i not in reached[0] | reached[-1]):
        assert node.op_type == "Shape" or not any(map(LAYER.search, node.input)), f"{node.name} belongs to a layer"
        yield clean(node)
    bodies = [[nodes[i] for i in sorted(own - later)] for own, later in pairwise(reached)]
    inner = {value for body in bodies for node in body for value in node.output}
    for layer, kind in enumerate(traced.layers):
        yield from _copy(bodies[kind], layer, kind, inner)
    yield from _renamed([nodes[i] for i in sorted(reached[-1])], {HIDDEN.format(kinds): _last(traced)}, inner)


def _last(traced: Traced) -> str:
    return HIDDEN.format(len(traced.layers))


def _weights_from(traced: Traced, first: int) -> set[str]:
    """The weights of traced layer ``first`` and later ones."""
    layers = {name: layer_of(name) for name in traced.weights}
    return {name for name, layer in layers.items() if layer is not None and layer >= first}


def _reached(nodes: list[Any], start: set[str]) -> set[int]:
    """Indices of the nodes that depend on one of the values ``start``."""
    values, found = set(start), set()
    for i, node in enumerate(nodes):
        if values.intersection(node.input):
            values.update(node.output)
            found.add(i)
    return found


def _copy(body: list[Any], layer: int, kind: int, inner: set[str]) -> Iterator[Any]:
    """The nodes of traced layer ``kind`` as layer ``layer`` of the model."""
    own = {value for node in body for value in node.output}
    names = {value: f"layers.{layer}/{value}" for value in own}
    names |= {
        value: at(value, layer) for node in body for value in (*node.input, *node.output) if layer_of(value) == kind
    }
    names |= {HIDDEN.format(kind + step): HIDDEN.format(layer + step) for step in (0, 1)}
    for node in _renamed(body, names, inner):
        node.name = at(node.name, layer) if layer_of(node.name) == kind else f"layers.{layer}/{node.name}"
        yield node


def _renamed(nodes: list[Any], names: dict[str, str], inner: set[str]) -> Iterator[Any]:
    """Copies of ``nodes`` under these names for values; what else they read must not come from inside a layer."""
    for node in nodes:
        leaked = {v for v in node.input if v not in names and (v in inner or layer_of(v) is not None)}
        assert not leaked, f"{node.name} reads {leaked} from inside a layer"
        copy = clean(node)
        copy.input[:] = [names.get(value, value) for value in node.input]
        copy.output[:] = [names.get(value, value) for value in node.output]
        yield copy


def clean(proto: Any) -> Any:
    """A copy without what torch leaves in it: stack traces with paths, source lines, notes."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.ClearField("metadata_props")
    copy.ClearField("doc_string")
    return copy
