"""Damage to an ONNX folder, by one who wants to be believed: the program sealed anew after every change."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from exporters.onnx import graph, statements


def edit(path: Path, change: Callable[[onnx.ModelProto], object], whole: onnx.ModelProto | None = None) -> None:
    """Change the program of a folder, or of ``whole`` a copy, and seal it anew."""
    if whole is not None:
        (path / graph.MODEL).write_bytes(whole.SerializeToString())
    statements.forge(path, change)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def offset(path: Path, name: str) -> int:
    """Where an initializer begins in the data file."""
    model = onnx.load(path / graph.MODEL, load_external_data=False)
    return int(initializer(model, name).external_data[1].value)


def patch(path: Path, name: str, raw: bytes, at: int = 0) -> None:
    """Write bytes over those of an initializer, from its byte ``at`` on."""
    with open(path / graph.DATA, "r+b") as data:
        data.seek(offset(path, name) + at)
        data.write(raw)


def node_changes(
    node: onnx.NodeProto, of_the_program: Callable[[str], bool]
) -> list[Callable[[onnx.NodeProto], object]]:
    """Each one field: type, domain, each input that is not ``of_the_program``, each attribute, one attribute more."""

    def change(field: str) -> Callable[[onnx.NodeProto], object]:
        return lambda n: setattr(n, field, "Identity" if field == "op_type" else "elsewhere")

    def enter(i: int) -> Callable[[onnx.NodeProto], object]:
        return lambda n: n.input.__setitem__(i, "model.norm.weight")

    def drop(i: int) -> Callable[[onnx.NodeProto], object]:
        return lambda n: n.attribute.__delitem__(i)

    inner = [i for i, value in enumerate(node.input) if "weight" in value or "/" not in value]
    return [
        change("op_type"),
        change("domain"),
        lambda n: n.attribute.add(name="more", i=1, type=2),
        *(enter(i) for i in inner if not of_the_program(node.input[i])),
        *(drop(i) for i in range(len(node.attribute))),
    ]


def _kind(t: onnx.TensorProto) -> None:
    t.data_type = 1 if t.data_type != 1 else 7


def _dims(t: onnx.TensorProto) -> None:
    t.dims[0] += 1


def _renamed(t: onnx.TensorProto) -> None:
    t.name += "x"


def _moved(t: onnx.TensorProto) -> None:
    t.external_data[1].value = str(int(t.external_data[1].value) + 64)


def _more(t: onnx.TensorProto) -> None:
    t.external_data.add(key="checksum", value="0")


def _inside(t: onnx.TensorProto) -> None:
    t.data_location = onnx.TensorProto.DEFAULT


INITIALIZER_CHANGES: Sequence[Callable[[onnx.TensorProto], None]] = (_kind, _dims, _renamed, _moved, _more, _inside)
