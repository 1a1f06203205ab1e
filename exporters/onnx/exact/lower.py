"""From the traced program to one of operations that have one result, node by node.

What moves values, compares them or rounds correctly is kept. Matrix products, reductions and transcendental
functions are written out (`products`, `elementary`). Anything else is refused by name: an operation that nobody
has thought about is not exact.
"""

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

from edgeqaf.errors import Refused
from exporters.onnx.exact import elementary, products
from exporters.onnx.exact.columns import GROUP
from exporters.onnx.exact.emit import Emit
from exporters.onnx.stack import clean
from exporters.onnx.trace import Traced
from exporters.onnx.uses import LOOKUP

KEPT = frozenset((
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "Div", "Equal", "Expand", "Floor", "Gather", "GatherND",
    "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
    "Range", "ReduceMax", "Relu", "Reshape", "Round", "Shape", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
))  # fmt: skip
FUNCTIONS: Mapping[str, Callable[[Emit, str, str], Any]] = {
    "Cos": elementary.cosine,
    "Reciprocal": elementary.reciprocal,
    "Sin": elementary.sine,
    "Sigmoid": elementary.sigmoid,
    "Tanh": elementary.tanh,
    "Gelu": elementary.gelu_tanh,
}
CACHE = re.compile(r"present\.(\d+)\.(key|value)")


def lower(
    traced: Traced, digits: Mapping[str, int], looked_up: Container[str], context: int, activations: str
) -> Traced:
    """The same program in exact operations.

    digits:      of each of `matrices`. looked_up: matrices whose rows are gathered from their digits.
    context:     the longest sequence.
    activations: to what they are rounded before a matrix, "int8" or "int16".

    Raises Refused for an operation that has no exact form.
    """
    lowering = _Lowering(traced, digits, looked_up, context, activations)
    for node in traced.graph.node:
        lowering.lower(node)
    graph = type(traced.graph)()
    graph.CopyFrom(traced.graph)
    del graph.node[:]
    graph.node.extend(lowering.emit.nodes)
    used = {value for node in graph.node for value in node.input}
    kept = [clean(constant) for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *lowering.emit.initializers()])
    return replace(traced, graph=graph)


def matrices(traced: Traced) -> set[str]:
    """The weights that the program multiplies by."""
    return set(_transposed(traced).values())


def _transposed(traced: Traced) -> dict[str, str]:
    """Value -> the matrix that it is the transpose of."""
    found = (node for node in traced.graph.node if node.op_type == "Transpose")
    return {node.output[0]: node.input[0] for node in found if len(traced.weights.get(node.input[0], ())) == 2}


class _Lowering:
    def __init__(
        self, traced: Traced, digits: Mapping[str, int], looked_up: Container[str], context: int, activations: str
    ) -> None:
        self.emit = Emit()
        self._weights, self._digits, self._context, self._activations = traced.weights, digits, context, activations
        self._looked_up, self._transposed = looked_up, _transposed(traced)
        self._readers: dict[str, dict[str, str]] = {}  # value -> the matrices it is multiplied by -> the products
        for node in traced.graph.node:
            if node.op_type == "MatMul" and (name := self._transposed.get(node.input[1])):
                self._readers.setdefault(node.input[0], {})[name] = node.output[0]
        self._special: Mapping[str, Callable[[Any], bool]] = {  # true: nothing is left to emit
            "Cast": self._cast,
            "Concat": self._concat,
            "Gather": self._gather,
            "MatMul": self._matmul,
            "Pow": self._pow,
            "ReduceMean": self._reduce_mean,
            "Reshape": self._reshape,
            "Softmax": self._softmax,
            "Transpose": self._transpose,
        }
        self._shares: dict[str, tuple[str, str]] = {}  # value -> its weights and their sum
        self._constants = {c.name: _scalar(c) for c in traced.graph.initializer}
        self._widths = {v.name: v.type.tensor_type.shape.dim[-1].dim_value for v in _described(traced.graph)}

    def lower(self, node: Any) -> None:
        """Emit what computes the outputs of ``node``."""
        self.emit.scope(node.output[0])
        if node.op_type in self._special and self._special[node.op_type](node):
            return
        if node.op_type in FUNCTIONS:
            self._require(node, node.op_type != "Gelu" or _attribute(node, "approximate", b"none") == b"tanh")
            FUNCTIONS[node.op_type](self.emit, node.input[0], node.output[0])
            return
        self._require(node, node.op_type in KEPT and not node.domain)
        if strays := [v for v in node.input if v in self._shares or v in self._transposed]:
            raise Refused(f"{strays[0]} feeds {node.op_type}: no exact form", "export the everyday profile")
        self.emit.nodes.append(clean(node))

    def _require(self, node: Any, known: bool) -> None:
        if not known:
            raise Refused(
                f"the program's {node.op_type} ({node.output[0]}) has no exact form", "export the everyday profile"
            )

    def _transpose(self, node: Any) -> bool:
        return node.output[0] in self._transposed

    def _matmul(self, node: Any) -> bool:
        (a, b), out = node.input, node.output[0]
        if b in self._transposed:
            self._linear(a)
        elif a in self._shares:
            products.weighted(self.emit, *self._shares[a], b, out)
        else:
            products.scores(self.emit, a, b, out)
        return True

    def _linear(self, x: str) -> None:
        """All linear layers that read ``x``, as one."""
        members = self._readers.pop(x, {})
        if not members:
            return
        group = GROUP.join(members)
        self.emit.scope(group)
        digits, widths = max(self._digits[name] for name in members), [self._weights[name][0] for name in members]
        products.linears(self.emit, x, group, digits, self._activations, widths, list(members.values()))

    def _gather(self, node: Any) -> bool:
        name, ids = node.input
        if name not in self._looked_up:
            return False
        self.emit.scope(f"{name}{LOOKUP}")
        products.lookup(self.emit, name, self._digits[name], self._weights[name][0], ids, node.output[0])
        return True

    def _concat(self, node: Any) -> bool:
        """The caches grow by what is rounded, once."""
        cache = CACHE.fullmatch(node.output[0])
        if cache is None:
            return False
        past, new = node.input
        rounded = products.rounded_key if cache[2] == "key" else products.rounded_value
        self.emit("Concat", past, rounded(self.emit, new, int(cache[1])), out=node.output[0], axis=-2)
        return True

    def _softmax(self, node: Any) -> bool:
        self._require(node, _attribute(node, "axis", -1) == -1)
        self._shares[node.output[0]] = products.weights(self.emit, node.input[0], self._context)
        return True

    def _cast(self, node: Any) -> bool:
        """transformers casts softmax's result to the type that it has."""
        if node.input[0] not in self._shares:
            return False
        self._shares[node.output[0]] = self._shares[node.input[0]]
        return True

    def _reshape(self, node: Any) -> bool:
        """Grouped heads become rows of one product."""
        if node.input[0] not in self._shares:
            return False
        (e, total), shape = self._shares[node.input[0]], node.input[1]
        rows = self.emit("Slice", shape, self.emit.integers(0), self.emit.integers(-1), self.emit.integers(0))
        one = self.emit("Concat", rows, self.emit.integers(1), axis=0)
        self._shares[node.output[0]] = self.emit("Reshape", e, shape), self.emit("Reshape", total, one)
        return True

    def _pow(self, node: Any) -> bool:
        """The square, which is what RMS norms take."""
        x, exponent = node.input
        self._require(node, self._constants.get(exponent) == 2.0)
        self.emit("Mul", x, x, out=node.output[0])
        return True

    def _reduce_mean(self, node: Any) -> bool:
        elementary.mean(self.emit, node.input[0], self._widths[node.input[0]], node.output[0])
        return True


def _scalar(constant: Any) -> float | None:
    from onnx import numpy_helper

    array = numpy_helper.to_array(constant)
    return float(array) if array.ndim == 0 else None


def _described(graph: Any) -> list[Any]:
    return [v for v in [*graph.value_info, *graph.input, *graph.output] if v.type.tensor_type.shape.dim]


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
