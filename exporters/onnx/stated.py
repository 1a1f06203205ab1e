"""What a model file says of itself: its metadata, trusted no further than that they are well formed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from edgeqaf import plugins
from edgeqaf.errors import Refused, UsageError
from edgeqaf.exportoptions import ACTIVATIONS, Form, OnnxOptions
from edgeqaf.grid import Grid
from exporters.onnx import parts as layout
from exporters.onnx.opened import AGAIN, opened
from exporters.onnx.seal import FORM, GRIDS, SEAL, SHAPES, seal_fits

MAX_MODEL_BYTES = 2**28  # the graph alone; the weights are in the data file


def parse(path: Path) -> tuple[Any, OnnxOptions]:
    """The model and how it was asked for, provided the file is as it was sealed."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_MODEL_BYTES:
            raise Refused(f"{path} has {size} bytes, not 1 to {MAX_MODEL_BYTES}", AGAIN)
        try:
            model = onnx.ModelProto.FromString(raw := file.read())
        except DecodeError as error:
            raise Refused(f"{path} is not an ONNX model: {error}", AGAIN) from None
    if any(not isinstance(text, str) for text in _texts(model)):  # as protobuf gives what is no UTF-8
        raise Refused(f"{path} holds a name that is no text", AGAIN)
    entries = [(p.key, p.value) for p in model.metadata_props]
    keys = [key for key, _ in entries]
    if keys not in ([GRIDS, FORM, SEAL], [GRIDS, FORM, SHAPES, SEAL]):
        raise Refused(f"metadata keys {keys}, expected {[GRIDS, FORM, SEAL]}, or {SHAPES} too", AGAIN)
    if not seal_fits(raw, entries[-1][1]):
        raise Refused(f"{path} is not the file whose digest it holds", AGAIN)
    asked = _options(entries[1][1])
    if (SHAPES in keys) != (asked.profile == "exact"):
        raise Refused(f"metadata keys {keys} in profile {asked.profile}", AGAIN)
    return model, asked


def _texts(model: Any) -> Iterator[Any]:
    """What is read of a model as text."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (opset.domain for opset in model.opset_import)
    for node in model.graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for tensor in model.graph.initializer:
        yield from (tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value)))


def _options(text: str) -> OnnxOptions:
    """The options of an export that can have made such a file."""
    import json

    try:
        found = OnnxOptions(**json.loads(text))
        known = found.activations in ACTIVATIONS[found.profile] and found.form in get_args(Form)
        known = known and found.accuracy_level in range(5) and (found.profile == "everyday" or found.form == "qdq")
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise Refused(f"metadata {FORM}: {text[:200]}", AGAIN)
    return found


def stated_grids(model: Any) -> dict[str, Grid]:
    """Logical name -> grid of the quantized tensors, from the model's metadata."""
    import json

    try:
        named = json.loads(model.metadata_props[0].value)
        found: dict[str, Grid] = {name: plugins.find("grids", grid) for name, grid in named.items()}
    except (ValueError, AttributeError, UsageError) as error:
        raise Refused(f"metadata {GRIDS}: {error}", AGAIN) from None
    for grid in found.values():
        if reason := layout.refuses(grid):
            raise Refused(f"grid {grid.name}: {reason}", AGAIN)
    return found


def stated_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Logical shapes as the metadata of the exact profile say."""
    import json

    text = model.metadata_props[2].value
    try:
        found = json.loads(text)
        shapes = {name: tuple(int(n) for n in shape) for name, shape in found.items()}
        if any(list(shapes[name]) != found[name] for name in shapes):
            raise ValueError("not of integers")
    except (ValueError, AttributeError, TypeError) as error:
        raise Refused(f"metadata {SHAPES}: {error}", AGAIN) from None
    return shapes
