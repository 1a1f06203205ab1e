"""An ONNX folder holds exactly the model it was made from, says nothing else, and is read back strictly."""

import getpass
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import CONFIG, GRIDS, K_PROJ, WAYS, random_tensor, root, tiny

from edgeqaf import plugins, runs
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Tensor, merkle_root, tensor_digest
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.grid import Grid, Zero
from edgeqaf.packing import WIDTHS as BITS_OF
from edgeqaf.qtensor import QTensor
from exporters.onnx import exporter, graph, parts, strips, trace


@pytest.fixture(scope="module", params=GRIDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[QModel, Path]:
    model = tiny(tmp_path_factory.mktemp("model"), request.param)
    path = tmp_path_factory.mktemp("dist") / exporter.filename
    exporter.export(model, path)
    return model, path


def test_read_back_gives_the_root_of_the_model(exported: tuple[QModel, Path]):
    model, path = exported
    assert root(path) == merkle_root(model.digests())


def test_names_are_those_in_the_file(exported: tuple[QModel, Path]):
    _, path = exported
    names = {t.name for t in onnx.load(path / "model.onnx", load_external_data=False).graph.initializer}
    for name, stored in exporter.read_back(path).items():
        assert stored.name == (f"{name}.codes" if isinstance(stored.tensor, QTensor) else name)
        assert stored.name in names


@pytest.mark.parametrize("grid", ["q4_0", "q4_1", "uint4"])
@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("ends", ["float", "tied"])
def test_plan_predicts_the_size_of_every_form(ends: str, activations: str, form: str, grid: str, tmp_path: Path):
    model = tiny(tmp_path, grid, ends, form=form, activations=activations)
    size = sum(file.stat().st_size for file in exporter.export(model, tmp_path / "onnx").iterdir())
    assert abs(exporter.plan(model) - size) <= size // 20  # a model of 30 KB of weights; the graph is most of it


def test_plan_predicts_the_size(exported: tuple[QModel, Path]):
    model, path = exported
    size = sum(file.stat().st_size for file in path.iterdir())
    assert abs(exporter.plan(model) - size) <= size // 100


def test_two_exports_are_byte_identical(exported: tuple[QModel, Path], tmp_path: Path):
    model, path = exported
    exporter.export(model, tmp_path / "again")
    assert sorted(p.name for p in path.iterdir()) == sorted(p.name for p in (tmp_path / "again").iterdir())
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_two_traces_are_identical():
    first = trace.trace(CONFIG, trace.OPERATORS)
    trace._trace.cache_clear()
    assert trace.trace(CONFIG, trace.OPERATORS) == first


@pytest.mark.slow
def test_another_process_folder_and_number_of_threads_give_the_same_bytes(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from onnx_models import tiny; from exporters.onnx import exporter;"
        "exporter.export(tiny(Path(sys.argv[1]), 'q4_1', 'tied'), Path(sys.argv[1]) / 'onnx')"
    )
    tests = Path(__file__).resolve().parents[1]
    paths = {"PYTHONPATH": f"{tests.parent}:{tests}"}
    for threads in ("1", "3"):
        (tmp_path / threads).mkdir()
        environment = os.environ | paths | {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / threads)], env=environment, check=True)
    for file in (tmp_path / "1" / "onnx").iterdir():
        assert file.read_bytes() == (tmp_path / "3" / "onnx" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_another_process_traces_the_same_and_says_nothing():
    program = (
        "import json, sys; from exporters.onnx import trace;"
        "graph = trace.trace(json.loads(sys.argv[1]), trace.OPERATORS).graph;"
        "sys.stdout.buffer.write(graph.SerializeToString(deterministic=True))"
    )
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-W", "error", "-c", program, json.dumps(CONFIG)]
    ran = subprocess.run(command, capture_output=True, env=os.environ | environment, check=True)
    assert ran.stdout == trace.trace(CONFIG, trace.OPERATORS).graph.SerializeToString(deterministic=True)
    assert ran.stderr == b""


def test_nothing_of_this_machine_is_inside(exported: tuple[QModel, Path]):
    _, path = exported
    model = onnx.load(path / "model.onnx", load_external_data=False)
    raw = (path / "model.onnx").read_bytes()
    places = [
        str(Path.home()),
        sys.prefix,
        tempfile.gettempdir() + "/",
        str(Path(__file__).parents[2]),
        os.uname().nodename,
    ]
    for foreign in [*places, f"{getpass.getuser()}@", "site-packages", ".py", "stack_trace", "pkg.torch"]:
        assert foreign.encode() not in raw, foreign
    assert [p.key for p in model.metadata_props] == ["edgeqaf.grids", "edgeqaf.asked", "edgeqaf.sha256"]
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    assert (path / "model.onnx").stat().st_mode & 0o777 == (path / "config.json").stat().st_mode & 0o777


def test_onnx_accepts_it(exported: tuple[QModel, Path]):
    _, path = exported
    onnx.checker.check_model(str(path / "model.onnx"), full_check=True)
    model = onnx.load(path / "model.onnx", load_external_data=False)
    types = {onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    expected = (13, [("", 25)]) if "UINT2" in types else (11, [("", 23)])
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == expected
    grids = {t.grid for t in exported[0].tensors.values() if isinstance(t, QTensor)}
    assert types >= {exporter.stored_as(grid).type for grid in grids}


def test_interface_is_what_loaders_expect(exported: tuple[QModel, Path]):
    model, path = exported
    loaded = onnx.load(path / "model.onnx", load_external_data=False).graph
    cache = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert [i.name for i in loaded.input][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert [i.name for i in loaded.input][3:] == [f"past_key_values.{c}" for c in cache]
    assert [o.name for o in loaded.output] == ["logits", *(f"present.{c}" for c in cache)]
    genai = json.loads((path / "genai_config.json").read_text())
    decoder, head = genai["model"]["decoder"], model.config["hidden_size"] // 4
    assert decoder["inputs"]["position_ids"] == "position_ids"
    assert decoder["session_options"]["session.qdq_matmulnbits_accuracy_level"] == "1"
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (head, 2, 2)
    assert (genai["model"]["eos_token_id"], genai["model"]["pad_token_id"]) == (2, 2)
    assert genai["search"]["past_present_share_buffer"] is False


@pytest.mark.parametrize("level", range(5))
def test_the_accuracy_level_travels_to_genai(level: int, tmp_path: Path):
    asked = ExportOptions(onnx=OnnxOptions(accuracy_level=level))
    exporter.export(replace(tiny(tmp_path, "q4_0"), asked=asked), tmp_path / "onnx")
    decoder = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["session_options"]["session.qdq_matmulnbits_accuracy_level"] == str(level)


def test_codes_are_stored_unchanged_and_a_tied_head_once(exported: tuple[QModel, Path]):
    model, path = exported
    loaded = onnx.load(path / "model.onnx", load_external_data=False)
    held = {t.name: list(t.dims) for t in loaded.graph.initializer if t.external_data}
    assert [n for n, dims in held.items() if dims == [96, model.config["hidden_size"]]] == ["model.embed_tokens.weight"]
    users = [node.op_type for node in loaded.graph.node if "model.embed_tokens.weight" in node.input]
    assert sorted(users) == ["Gather", "Transpose"]
    full = {t.name: t for t in onnx.load(path / "model.onnx").graph.initializer}
    codes = onnx.numpy_helper.to_array(full[f"{K_PROJ}.codes"]).astype(np.int8)
    assert np.array_equal(codes.T, model.tensors[K_PROJ].codes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 5}, "codes of 5 bits; ONNX carries 2, 3, 4, 8"),
        ({"bits": 3}, r"span \[0, 15\], outside \[0, 7\] of its 3-bit type"),
        ({"block": 8}, "blocks of 8"),
        ({"lo": -8, "hi": 7}, r"span \[-8, 7\]"),
        ({"bits": 8, "hi": 255}, r"span \[0, 255\]"),
    ],
)
def test_refuses_says_why(changes: dict[str, int], reason: str):
    grid = replace(plugins.find("grids", "q4_0"), **changes)
    assert re.search(reason, exporter.refuses(grid) or "")


REFUSED = [name for name in plugins.names("grids") if exporter.refuses(plugins.find("grids", name))]


@pytest.mark.parametrize("grid", REFUSED)
def test_a_model_on_a_refused_grid_is_refused_by_tensor_grid_and_reason(grid: str, tmp_path: Path):
    reason = re.escape(exporter.refuses(plugins.find("grids", grid)) or "")
    with pytest.raises(Refused, match=f"model.layers.0.* ONNX cannot carry {grid}: {reason}"):
        exporter.plan(tiny(tmp_path, grid))


def random_on(grid: Grid, shape: tuple[int, int], seed: int = 3) -> QTensor:
    rng = np.random.default_rng(seed)
    each = (shape[0], shape[1] // grid.block)
    codes = rng.integers(grid.lo, grid.hi + 1, shape).astype(np.int8)
    scale, offset = (rng.standard_normal(each).astype(np.float16).astype(np.float32) for _ in range(2))
    points = rng.integers(grid.lo, grid.hi + 1, each).astype(np.float32)
    return QTensor(grid, codes, scale, {Zero.NONE: None, Zero.CODE: points, Zero.OFFSET: offset}[grid.zero])


KINDS = {"uint2": (2, 0, 3, 2), "uint3": (3, 0, 7, 4), "uint4": (4, 0, 15, 8), "int8": (8, -128, 127, 0)}


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize("zero", Zero)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [3, 32, 200, 201])
def test_every_layout_comes_back_by_any_rows(
    rows: int, kind: str, zero: Zero, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Strips and runs of a few rows, and rows that share bytes with others, in blocks of 64."""
    bits, low, high, centre = KINDS[kind]
    base = plugins.find("grids", "q4_0")
    grid = replace(base, bits=bits, lo=low, hi=high, block=64, zero=zero, centre=centre if zero is Zero.NONE else 0)
    q = random_on(grid, (rows, 192))
    monkeypatch.setattr(strips, "STRIP", 192 * 64 // (8 // BITS_OF[bits]))
    monkeypatch.setattr(runs, "RUN", 192 * 32)
    stored = parts.parts("w", q.shape, grid, form)
    offsets, size = parts.place(stored)
    laid = strips.Layout("w", q.shape, grid, stored, offsets)
    if rows > 64 and form == "qdq" and rows % 2 == 0:
        assert len(laid.strips()) > 1
    with open(tmp_path / "data", "xb") as file:
        file.truncate(size)
        strips.write(file.fileno(), laid, runs.rows_in(q, "w"))
    read = strips.InFolder(tmp_path / "data", laid)
    assert tensor_digest("w", runs.whole(read.read, grid, q.shape)) == tensor_digest("w", q)
    found, expected = (each(1, rows - 1) for each in (read.read, runs.rows_in(q, "w")))
    assert all(np.array_equal(found[part], array) for part, array in expected.items())
    codes = np.fromfile(tmp_path / "data", np.uint8)[offsets["w.codes"] :][: stored[0].nbytes]
    reference = q.codes.T.reshape(-1) if form == "qdq" else (q.codes.astype(int) + 128 * (bits == 8)).reshape(-1)
    width = BITS_OF[bits]
    values = np.stack([codes >> (width * i) & (2**width - 1) for i in range(8 // width)], 1).reshape(-1)
    assert np.array_equal(values[: q.size], reference.astype(np.uint8) & (2**width - 1))


def test_two_bits_and_outputs_that_fill_no_byte_are_refused_where_they_are_fused_wrong(tmp_path: Path):
    model = tiny(tmp_path, "q2_0", "tied")
    config, name = {**model.config, "vocab_size": 94}, "model.embed_tokens.weight"
    model = replace(
        model, config=config, tensors={**model.tensors, name: random_tensor(np.random.default_rng(0), "q2_0", (94, 64))}
    )
    with pytest.raises(Refused, match=r"embed_tokens.weight: 94 outputs of q2_0, no multiple of 4"):
        exporter.plan(model)
    asked = ExportOptions(onnx=OnnxOptions(form="matmulnbits"))
    path = exporter.export(replace(model, asked=asked), tmp_path / "onnx")
    assert root(path) == merkle_root(model.digests())


def test_unsupported_architecture_is_refused(tmp_path: Path):
    model = tiny(tmp_path, "q4_0")
    with pytest.raises(Refused, match="architecture 'gpt2'"):
        exporter.plan(replace(model, config={**CONFIG, "model_type": "gpt2"}))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hidden_size", None, "hidden_size is None"),
        ("vocab_size", -1, "vocab_size is -1"),
        ("num_hidden_layers", "2", "num_hidden_layers is '2'"),
        ("num_hidden_layers", 10**9, "1000000000 layers, the model has 20 tensors"),
    ],
)
def test_impossible_sizes_are_refused_before_any_work(key: str, value: object, reason: str, tmp_path: Path):
    model = tiny(tmp_path, "q4_0")
    with pytest.raises(Refused, match=reason):
        exporter.plan(replace(model, config={**CONFIG, key: value}))


def _without_norm(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"]


def _with_a_stray(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.extra.weight"] = np.ones(3, np.float32)


def _with_a_wide_norm(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = np.ones(65, np.float32)


def _with_a_quantized_norm(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = random_tensor(np.random.default_rng(0), "q4_0", (1, 64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_norm, "no tensor model.norm.weight"),
        (_with_a_stray, "no place for model.layers.0.extra.weight"),
        (_with_a_wide_norm, r"model.norm.weight: shape \(65,\), config.json makes it \(64,\)"),
        (_with_a_quantized_norm, r"model.norm.weight: shape \(1, 64\), config.json makes it"),
    ],
)
def test_a_model_that_does_not_fit_its_config_leaves_nothing(
    change: Callable[[dict[str, Tensor]], None], reason: str, tmp_path: Path
):
    model = tiny(tmp_path, "q4_0")
    tensors = dict(model.tensors)
    change(tensors)
    with pytest.raises(Refused, match=reason):
        exporter.export(replace(model, tensors=tensors), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_config_that_cannot_be_built_is_refused(tmp_path: Path):
    model = tiny(tmp_path, "q4_0")
    with pytest.raises(Refused, match=r"config\.json describes cannot be traced"):
        exporter.export(replace(model, config={**CONFIG, "num_attention_heads": 3}), tmp_path / "onnx")


ENDS = ("q4_0", "q4_1", "q8_0", "q3_0", "q2_0", "uint4", "uint2")


def test_what_onnx_runtime_fuses_and_cannot_run_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match=r"_proj.weight: q8_0 with activations in int8: ONNX Runtime makes one operator"):
        exporter.plan(tiny(tmp_path, "q8_0", activations="int8"))


@pytest.mark.parametrize("ends", ["tied", "untied"])
@pytest.mark.parametrize(("grid", "form", "activations"), [way for way in WAYS if way[0] in ENDS])
def test_quantized_ends_in_every_form(form: str, activations: str, grid: str, ends: str, tmp_path: Path):
    """The root, what onnx says, and that a tied matrix lies in the file once."""
    model = tiny(tmp_path, grid, ends, form=form, activations=activations)
    path = exporter.export(model, tmp_path / "onnx")
    assert root(path) == merkle_root(model.digests())
    onnx.checker.check_model(str(path / "model.onnx"), full_check=form == "qdq")
    size = (path / graph.DATA).stat().st_size
    stored = [p for n, t in model.tensors.items() for p in parts.parts(n, t.shape, getattr(t, "grid", None), form)]
    assert size == parts.place(stored)[1]
    other = tmp_path / "other"
    other.mkdir()
    again = exporter.export(tiny(other, grid, ends, form=form, activations=activations), tmp_path / "again")
    assert all(file.read_bytes() == (again / file.name).read_bytes() for file in path.iterdir())
