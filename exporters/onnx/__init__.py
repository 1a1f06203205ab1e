"""ONNX: a folder that ONNX Runtime, onnxruntime-genai and optimum load, carrying the very integers.

    model.onnx             the decoder with a key-value cache, opset 23 (25 for UINT2); no weights inside
    model.onnx.data        the weights: codes as UINT2, UINT4 or INT8, scales as float32, see `parts`
    genai_config.json      for onnxruntime-genai
    config.json, ...       config and tokenizer files, copied

The program is transformers' own for each family that `architecture` names, traced by torch (`trace`);
layers are stacked and quantized weights attached as blocked ``DequantizeLinear -> MatMul`` in the form
that ONNX Runtime fuses to its low-bit kernels (`graph`). Codes never pass through floats on the way.
Two exports of a model are byte-identical. A tied head costs nothing: embedding and head read one
initializer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.companions import COMPANIONS, copy_companions
from edgeqaf.console import progress
from edgeqaf.digest import FLOAT32, Tensor
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import Form, OnnxOptions
from edgeqaf.grid import Grid, Zero
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.protocols import Stored, StoredAs
from edgeqaf.runs import rows_of
from edgeqaf.source import EMBEDDING
from exporters.onnx import parts as layout
from exporters.onnx.architecture import check
from exporters.onnx.genai import genai_config
from exporters.onnx.linear import few_bits

# Measured bytes of model.onnx and genai_config.json: once, per layer, with a softcap, per tensor, per float zero.
_GRAPH_BYTES, _LAYER_BYTES, _SOFTCAP_BYTES, _TENSOR_BYTES, _OFFSET_BYTES = 3_000, 5_850, 2_800, 195, 1_188


Kind = tuple[tuple[int, ...], Grid | None]  # a tensor's shape and grid; None for float


class OnnxExporter:
    """Exporter of ONNX folders; the protocol is `edgeqaf.protocols.Exporter`."""

    filename: ClassVar[str] = "onnx"

    def refuses(self, grid: Grid) -> str | None:
        """Why ONNX cannot carry ``grid`` exactly, or None if it can."""
        return layout.refuses(grid)

    def stored_as(self, grid: Grid) -> StoredAs:
        """The ONNX type of a grid's codes, and the bits of a weight."""
        return layout.stored_as(grid)

    def plan(self, model: QModel) -> int:
        """Bytes that `export` will write; raises Refused for an architecture or grid it cannot carry."""
        kept = _kept(model)
        stored = [
            part
            for name, (shape, grid) in kept.items()
            for part in layout.parts(name, shape, grid, model.asked.onnx.form)
        ]
        companions = sum((model.folder / n).stat().st_size for n in COMPANIONS if (model.folder / n).is_file())
        offsets = sum(grid is not None and grid.zero is Zero.OFFSET for _, grid in kept.values())
        layer = _LAYER_BYTES + (_SOFTCAP_BYTES if model.config.get("attn_logit_softcapping") else 0)
        layers: int = model.config["num_hidden_layers"]
        graph = _GRAPH_BYTES + layer * layers + _TENSOR_BYTES * len(kept) + _OFFSET_BYTES * offsets
        return layout.place(stored)[1] + graph + _further_bytes(kept, model.asked.onnx) + companions

    def export(self, model: QModel, path: Path) -> Path:
        """Write the folder ``path``. The graph is built first, so a refusal leaves nothing behind."""
        from exporters.onnx.graph import DATA, MODEL, build
        from exporters.onnx.trace import OPERATORS, trace

        kept = _kept(model)
        traced = trace(model.config, OPERATORS)
        program = build(traced, kept, model.asked.onnx)
        path.mkdir()
        copy_companions(model.folder, path)
        generation = model.folder / "generation_config.json"
        generated = read_json(generation) if generation.is_file() else {}
        settings = genai_config(model.config, generated, traced, MODEL, model.asked.onnx.accuracy_level)
        write_json(path / "genai_config.json", settings)
        (path / MODEL).write_bytes(program)
        write_data(path / DATA, kept, model.tensors, model.asked.onnx.form)
        return path

    def read_back(self, path: Path) -> Mapping[str, Stored]:
        """Every tensor of the folder by logical name; see `exporters.onnx.reader`."""
        from exporters.onnx.reader import read_back

        return read_back(path)


def write_data(path: Path, kept: Mapping[str, Kind], tensors: Mapping[str, Tensor], form: Form) -> None:
    """The data file, each tensor by runs of rows."""
    from exporters.onnx.strips import Layout, write

    stored = {name: layout.parts(name, shape, grid, form) for name, (shape, grid) in kept.items()}
    offsets, size = layout.place([part for each in stored.values() for part in each])
    with open(path, "xb") as file, progress("write onnx", size, "B") as advance:
        file.truncate(size)
        done = 0
        for name, (shape, grid) in kept.items():
            done += write(file.fileno(), Layout(name, shape, grid, stored[name], offsets), rows_of(tensors, name))
            advance(done, name)


def _further_bytes(kept: Mapping[str, Kind], asked: OnnxOptions) -> int:
    """What the nodes asked for take beside those of the default form, and what looks up a quantized embedding."""
    from exporters.onnx.linear import linear
    from exporters.onnx.lookup import lookup, views

    further = 0
    for name, kind in kept.items():
        if kind[1] is not None:
            own, default = (sum(n.ByteSize() for n in linear(name, kind, "", "", a)) for a in (asked, OnnxOptions()))
            further += own - default
            if name == EMBEDDING:
                further += sum(n.ByteSize() + 3 for n in lookup(name, kind, "input_ids", "", asked.form))
                further += sum(3 * len(part.name) + 64 for part, _ in views(name, kind, asked.form))
    return further


def _kept(model: QModel) -> dict[str, tuple[tuple[int, ...], Grid | None]]:
    """Shape and grid (None: float) of each tensor by sorted name; raises Refused for what ONNX cannot carry."""
    _require_known(model.asked.onnx)
    check(model.config)
    if (layers := model.config["num_hidden_layers"]) > len(model.tensors):
        raise Refused(f"config.json: {layers} layers, the model has {len(model.tensors)} tensors", "fix config.json")
    kept = {}
    for name, (stored, shape) in sorted(model.outline().items()):
        grid = None if stored == FLOAT32 else plugins.find("grids", stored)
        if grid is not None and (reason := layout.refuses(grid)):
            raise Refused(f"{name}: ONNX cannot carry {grid.name}: {reason}", "choose another grid or format")
        if grid is not None and few_bits([grid], model.asked.onnx) and shape[0] % 4:
            raise Refused(
                f"{name}: {shape[0]} outputs of {grid.name}, no multiple of 4: ONNX Runtime gives such a matrix "
                "other weights when it fuses it",
                "export it with --form matmulnbits, or choose another grid",
            )
        kept[name] = (shape, grid)
    return kept


def _require_known(asked: OnnxOptions) -> None:
    """Refuse what is asked for and not made here."""
    if asked.profile != "everyday":
        raise Refused(f"ONNX with profile {asked.profile} is not made by this version", "leave --profile out")


exporter = OnnxExporter()
