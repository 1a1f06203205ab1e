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

With ``profile="exact"`` the folder has the same files, but another program: `exporters.onnx.exact`.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeqaf import plugins
from edgeqaf.checkpoint import QModel
from edgeqaf.companions import COMPANIONS, copy_companions
from edgeqaf.digest import FLOAT32
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ACTIVATIONS, OnnxOptions
from edgeqaf.grid import Grid
from edgeqaf.jsonfile import read_json, write_json
from edgeqaf.protocols import Stored, StoredAs
from edgeqaf.statements import Statements
from exporters.onnx import everyday
from exporters.onnx import parts as layout
from exporters.onnx.architecture import check
from exporters.onnx.genai import genai_config
from exporters.onnx.linear import Kind, few_bits

if TYPE_CHECKING:
    from exporters.onnx.data import Data

SETTINGS_BYTES = 1_300  # of genai_config.json


class OnnxExporter:
    """Exporter of ONNX folders; the protocol is `edgeqaf.protocols.Exporter`."""

    filename: ClassVar[str] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")

    def refuses(self, grid: Grid) -> str | None:
        """Why ONNX cannot carry ``grid`` exactly, or None if it can."""
        return layout.refuses(grid)

    def stored_as(self, grid: Grid) -> StoredAs:
        """The ONNX type of a grid's codes, and the bits of a weight."""
        return layout.stored_as(grid)

    def plan(self, model: QModel) -> int:
        """Bytes that `export` will write; raises Refused for an architecture or grid it cannot carry."""
        kept = _kept(model)
        companions = sum((model.folder / n).stat().st_size for n in COMPANIONS if (model.folder / n).is_file())
        if model.asked.onnx.profile == "everyday":
            return everyday.size(model, kept) + companions
        from exporters.onnx.exact.build import prepare

        prepared = prepare(model, kept)
        return prepared.data.size + len(prepared.program) + SETTINGS_BYTES + companions

    def export(self, model: QModel, path: Path) -> Path:
        """Write the folder ``path``. The graph is built first, so a refusal leaves nothing behind."""
        from exporters.onnx.data import write
        from exporters.onnx.graph import DATA

        made = _made(model)
        path.mkdir()
        made.write(model, path)
        write(path / DATA, made.data, model.tensors)
        return path

    def stated(self, path: Path) -> Statements:
        """`edgeqaf.statements.States`: the program node by node, and the further files."""
        from exporters.onnx import statements

        return statements.stated(path)

    def restated(self, model: QModel) -> Statements:
        from exporters.onnx import statements

        with tempfile.TemporaryDirectory() as folder:
            _made(model).write(model, Path(folder))
            return statements.stated(Path(folder))

    def forge(self, path: Path, change: Callable[[Any], object]) -> None:
        """change: of the program, an onnx.ModelProto."""
        from exporters.onnx import statements

        statements.forge(path, change)

    def read_back(self, path: Path) -> Mapping[str, Stored]:
        """Every tensor of the folder by logical name; see `exporters.onnx.reader`."""
        from exporters.onnx.reader import read_back

        return read_back(path)


@dataclass(frozen=True)
class _Made:
    """All that a folder holds before its data is written. settings: of genai_config.json."""

    program: bytes
    settings: Mapping[str, Any]
    data: "Data"

    def write(self, model: QModel, path: Path) -> None:
        """Everything but the data, into a folder that is there."""
        from exporters.onnx.graph import MODEL

        copy_companions(model.folder, path)
        write_json(path / "genai_config.json", self.settings)
        (path / MODEL).write_bytes(self.program)


def _made(model: QModel) -> _Made:
    from exporters.onnx.data import placed
    from exporters.onnx.exact.build import prepare
    from exporters.onnx.graph import MODEL, build
    from exporters.onnx.trace import OPERATORS, trace

    kept, asked = _kept(model), model.asked.onnx
    prepared = prepare(model, kept) if asked.profile == "exact" else None
    traced = prepared.traced if prepared else trace(model.config, OPERATORS)
    generation = model.folder / "generation_config.json"
    generated = read_json(generation) if generation.is_file() else {}
    return _Made(
        prepared.program if prepared else build(traced, kept, asked),
        genai_config(model.config, generated, traced, MODEL, asked.accuracy_level),
        prepared.data if prepared else placed(kept, asked.form),
    )


def _kept(model: QModel) -> dict[str, Kind]:
    """Shape and grid (None: float) of each tensor by sorted name; raises Refused for what ONNX cannot carry."""
    _require_sound(model.asked.onnx)
    check(model.config)
    if (layers := model.config["num_hidden_layers"]) > len(model.tensors):
        raise Refused(f"config.json: {layers} layers, the model has {len(model.tensors)} tensors", "fix config.json")
    kept: dict[str, Kind] = {}
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
        if grid is not None and _fails(grid, model.asked.onnx):
            raise Refused(
                f"{name}: {grid.name} with activations in int8: ONNX Runtime makes one operator of both, which fails",
                "export it with --form matmulnbits, or leave --activations out",
            )
        kept[name] = (shape, grid)
    return kept


def _fails(grid: Grid, asked: OnnxOptions) -> bool:
    """Whether ONNX Runtime fuses what it then cannot run (`runtime_tests.pitfalls`: 8-bit-activations)."""
    return (asked.profile, asked.form, asked.activations) == ("everyday", "qdq", "int8") and grid.bits == 8


def _require_sound(asked: OnnxOptions) -> None:
    """Refuse options that contradict each other."""
    known = ACTIVATIONS[asked.profile]
    if asked.activations not in known:
        raise Refused(
            f"profile {asked.profile} with activations in {asked.activations}", f"it takes {' or '.join(known)}"
        )
    if asked.profile == "exact" and asked.form != "qdq":
        raise Refused(f"profile exact in the form {asked.form}", "it has a form of its own: leave it out")


exporter = OnnxExporter()
