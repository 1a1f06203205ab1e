"""The data file: where every part of every tensor lies, and all of it written by runs of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqaf.console import progress
from edgeqaf.digest import Tensor
from edgeqaf.exportoptions import Form
from edgeqaf.runs import rows_of
from exporters.onnx import parts as layout
from exporters.onnx import strips
from exporters.onnx.exact import columns
from exporters.onnx.exact.columns import Columns
from exporters.onnx.linear import Kind
from exporters.onnx.parts import Part
from exporters.onnx.strips import Layout


@dataclass(frozen=True)
class Data:
    """What lies where.

    parts:   all of them. offsets: of each, by name. size: of the file, in bytes.
    layouts: of every tensor. columns: of those whose digits are there too.
    """

    parts: Sequence[Part]
    offsets: Mapping[str, int]
    size: int
    layouts: Mapping[str, Layout]
    columns: Mapping[str, Columns]


def placed(kinds: Mapping[str, Kind], form: Form = "qdq", digits: Mapping[tuple[str, ...], int] | None = None) -> Data:
    """The layout for tensors of these kinds. digits: how many each group of matrices has, in the exact profile."""
    groups = digits or {}
    own = {name: layout.parts(name, *kind, form) for name, kind in kinds.items()}
    further = [part for names, n in groups.items() for part in columns.parts(names, kinds, n)]
    every = [*(part for parts in own.values() for part in parts), *further]
    offsets, size = layout.place(every)
    return Data(
        every,
        offsets,
        size,
        {name: Layout(name, *kinds[name], own[name], {p.name: offsets[p.name] for p in own[name]}) for name in own},
        {name: c for names, n in groups.items() for name, c in columns.columns(names, kinds, n, offsets).items()},
    )


def write(path: Path, data: Data, tensors: Mapping[str, Tensor]) -> None:
    """Write the file ``path``, which is not there yet."""
    with open(path, "xb") as file, progress("write onnx", data.size, "B") as advance:
        file.truncate(data.size)
        done = 0
        for name, layout in data.layouts.items():
            done += strips.write(file.fileno(), layout, rows_of(tensors, name))
            if name in data.columns:
                done += data.columns[name].write(file.fileno(), rows_of(tensors, name))
            advance(done, name)
