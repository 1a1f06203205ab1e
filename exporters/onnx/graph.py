"""From the traced layer to the ONNX model: stack the layers, attach the weights.

Copies of the traced layers are chained (`stack`). Then each weight, an input of the traced graph,
becomes an initializer whose bytes lie in the data file, read in a quantized form where the weight
is quantized (`linear`).
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgeqaf import __version__
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import Form, OnnxOptions
from edgeqaf.grid import Grid
from exporters.onnx.data import placed
from exporters.onnx.linear import MICROSOFT, Kind, attach, constants, few_bits
from exporters.onnx.lookup import views
from exporters.onnx.parts import Part
from exporters.onnx.seal import FORM, GRIDS, sealed
from exporters.onnx.stack import clean, copies, stack
from exporters.onnx.trace import INPUTS, OPERATORS, PRIMITIVES, Traced

Versions = tuple[int, list[tuple[str, int]]]  # IR version and opsets
IR_VERSION = 11
EXACT_VERSION = 10  # of the exact profile: what it needs is older
UINT2_VERSIONS = 13, 25  # the first IR and opset with UINT2; newer forms of what we use differ in types alone
MODEL, DATA = "model.onnx", "model.onnx.data"


def build(traced: Traced, tensors: Mapping[str, Kind], asked: OnnxOptions) -> bytes:
    """The file of the onnx.ModelProto that runs ``tensors`` in copies of the traced layers.

    Raises Refused, naming them, for tensors that the architecture lacks or that have no place in it.
    """
    check_tensors(traced, tensors)
    grids = {name: grid for name, (_, grid) in sorted(tensors.items()) if grid is not None}
    nodes = list(attach(stack(traced), tensors, asked))
    initializers = [
        *(clean(c) for c in traced.graph.initializer),
        *constants(grids.values()),
        *_external(tensors, nodes, asked.form),
    ]
    entries = {GRIDS: {n: g.name for n, g in grids.items()}, FORM: asdict(asked)}
    return assembled(traced, nodes, initializers, versions(grids.values(), asked), entries)


def assembled(
    traced: Traced, nodes: Sequence[Any], initializers: Sequence[Any], versions: Versions, entries: Mapping[str, Any],
    shapes: bool = False,
) -> bytes:  # fmt: skip
    """The sealed file of a program with the signature of ``traced``.

    entries: metadata, to be written as JSON. shapes: whether values are described as far as onnx infers them, which
    makes a program of many nodes load several times as fast: ONNX Runtime then sees which buffers serve again.
    """
    from onnx import helper, shape_inference

    inputs, outputs = signature(traced)
    ir, opsets = versions
    model = helper.make_model(
        helper.make_graph(nodes, "decoder", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid(*each) for each in opsets],
        ir_version=ir,
        producer_name="edgeqaf",
        producer_version=__version__,
    )
    if shapes:
        model = shape_inference.infer_shapes(model, data_prop=True)
    return sealed(model, {key: json.dumps(value, separators=(",", ":")) for key, value in entries.items()})


def versions(grids: Iterable[Grid], asked: OnnxOptions) -> Versions:
    """IR version and opsets of a model on these grids: the oldest with its types, so that most runtimes load it."""
    if asked.profile == "exact":
        return EXACT_VERSION, [("", PRIMITIVES)]
    ir, opset = UINT2_VERSIONS if few_bits(grids, asked) else (IR_VERSION, OPERATORS)
    return ir, [("", opset), *([(MICROSOFT, 1)] if asked.form == "matmulnbits" else [])]


def check_tensors(traced: Traced, tensors: Mapping[str, Kind]) -> None:
    """Raises Refused, naming them, for tensors that the architecture lacks or that have no place in it."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in traced.weights.items():
        wanted |= dict.fromkeys(copies(traced, name), shape)
    if missing := sorted(set(wanted) - set(tensors)):
        raise Refused(f"no tensor {', '.join(missing)}, which config.json asks for", "check config.json")
    if foreign := sorted(set(tensors) - set(wanted)):
        raise Refused(f"the graph has no place for {', '.join(foreign)}", "check config.json")
    for name, shape in wanted.items():
        if tensors[name][0] != shape:
            raise Refused(f"{name}: shape {tensors[name][0]}, config.json makes it {shape}", "check config.json")


def _external(tensors: Mapping[str, Kind], nodes: Sequence[Any], form: Form) -> Iterator[Any]:
    """Initializers of all weights."""
    read = {value for node in nodes for value in node.input}
    data = placed(tensors, form)
    yield from external(data.offsets, declared(tensors, data.parts, read, form))


def external(offsets: Mapping[str, int], named: Sequence[tuple[Part, Part]]) -> Iterator[Any]:
    """Initializers with their bytes in the data file. offsets: of its parts; named: (initializer, part whose bytes)."""
    from onnx import TensorProto

    for part, home in named:
        tensor = TensorProto(name=part.name, dims=part.shape, data_type=TensorProto.DataType.Value(part.type))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", offsets[home.name]), ("length", part.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        yield tensor


def declared(
    tensors: Mapping[str, Kind], stored: Sequence[Part], read: Container[str], form: Form
) -> list[tuple[Part, Part]]:
    """(initializer, part whose bytes it names): every part, and the second names of what is looked up."""
    found = [(part, part) for part in stored]
    for name, kind in tensors.items():
        if f"{name}.bytes" in read:
            found += views(name, kind, form)
    return sorted(found, key=lambda each: each[0].name)


def signature(traced: Traced) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs, named as optimum's ORTModelForCausalLM and onnxruntime-genai expect them."""
    from onnx import TensorProto, helper

    def cache(name: str, length: str) -> Iterator[Any]:
        for i in range(len(traced.layers)):
            for part in ("key", "value"):
                dims = ["batch_size", traced.kv_heads, length, traced.head_dim]
                yield helper.make_tensor_value_info(f"{name}.{i}.{part}", TensorProto.FLOAT, dims)

    total = "total_sequence_length"
    lengths = dict(zip(INPUTS, ("sequence_length", total, "sequence_length"), strict=True))
    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch_size", d]) for n, d in lengths.items()]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", traced.vocab])
    return [*ids, *cache("past_key_values", "past_sequence_length")], [logits, *cache("present", total)]
