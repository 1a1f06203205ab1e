"""What an ONNX folder says beside its tensors: each node, constant and input of the program, and each further file."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeqaf.digest import file_sha256
from edgeqaf.statements import Statements
from exporters.onnx.graph import DATA, MODEL
from exporters.onnx.seal import SEAL, sealed
from exporters.onnx.stated import parse


def stated(folder: Path) -> Statements:
    """By the files of a folder; its data need not be there."""
    found = {f"{MODEL}: {name}": digest for name, digest in _program(parse(folder / MODEL)[0])}
    others = (path for path in sorted(folder.iterdir()) if path.name not in (MODEL, DATA))
    return found | {path.name: file_sha256(path) for path in others}


def forge(folder: Path, change: Callable[[Any], object]) -> None:
    """Let ``change`` alter the program, an onnx.ModelProto, and seal it anew."""
    import onnx

    model = onnx.load(folder / MODEL, load_external_data=False)
    change(model)
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != SEAL}
    (folder / MODEL).write_bytes(sealed(model, entries))


def _program(model: Any) -> Iterator[tuple[str, str]]:
    """(name, digest) of every node, initializer and value, and of what is left then; the seal covers them."""
    graph = model.graph
    kinds = {
        "node": graph.node, "initializer": graph.initializer,
        "value": [*graph.input, *graph.output, *graph.value_info],
    }  # fmt: skip
    for kind, items in kinds.items():
        for i, item in enumerate(items):
            name = item.name or (item.output[0] if kind == "node" else str(i))
            yield f"{kind} {name}", hashlib.sha256(item.SerializeToString(deterministic=True)).hexdigest()
    order = [[item.name for item in items] for items in kinds.values()]
    rest = type(model)()
    rest.CopyFrom(model)
    for field in ("node", "initializer", "input", "output", "value_info"):
        rest.graph.ClearField(field)
    kept = [(p.key, p.value) for p in model.metadata_props if p.key != SEAL]
    rest.ClearField("metadata_props")
    yield (
        "the rest",
        hashlib.sha256(rest.SerializeToString(deterministic=True) + repr((kept, order)).encode()).hexdigest(),
    )
