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

from edgeqaf import plugins, runs
from edgeqaf.checkpoint import QModel
from edgeqaf.digest import Tensor, merkle_root, tensor_digest
from edgeqaf.errors import GridError, Refused
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.grid import Grid, Zero
from edgeqaf.packing import WIDTHS as BITS_OF
from edgeqaf.qtensor import QTensor
from exporters.onnx import exporter, graph, parts, strips, trace

GRIDS = [name for name in plugins.names("grids") if exporter.refuses(plugins.find("grids", name)) is None]
# Two layers, grouped heads, and down_proj rows (80) that no block divides, so they stay float.
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
K_PROJ = "model.layers.0.self_attn.k_proj.weight"


def random_tensor(rng: np.random.Generator, grid_name: str, shape: tuple[int, int]) -> QTensor:
    """Any codes, with parameters over all of float16: subnormals, zeros of both signs, both ends."""
    grid = plugins.find("grids", grid_name)
    blocks = (shape[0], shape[1] // grid.block)

    def halves() -> np.ndarray:
        bits = rng.integers(0, 0x7C00, blocks) | (rng.integers(0, 2, blocks) << 15)
        bits[0, 0] = 0x8000
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    codes = rng.integers(grid.lo, grid.hi + 1, shape).astype(np.int8)
    points = rng.integers(grid.lo, grid.hi + 1, blocks).astype(np.int8)
    zero = {Zero.NONE: lambda: None, Zero.CODE: lambda: points.astype(np.float32), Zero.OFFSET: halves}[grid.zero]()
    return QTensor(grid, codes, halves(), zero)


def tiny(folder: Path, grid: str) -> QModel:
    rng = np.random.default_rng(7)
    config = CONFIG | {"hidden_size": max(CONFIG["hidden_size"], plugins.find("grids", grid).unit)}
    h, ff = config["hidden_size"], config["intermediate_size"]
    kv = h // 2
    linears = {"self_attn.q": (h, h), "self_attn.k": (kv, h), "self_attn.v": (kv, h), "self_attn.o": (h, h)}
    linears |= {"mlp.gate": (ff, h), "mlp.up": (ff, h), "mlp.down": (h, ff)}
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": rng.standard_normal((96, h)).astype(np.float32),
        "model.norm.weight": rng.standard_normal(h).astype(np.float32),
    }
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = rng.standard_normal(h).astype(np.float32)
        for name, shape in linears.items():
            fits = plugins.find("grids", grid).fits(shape[1])
            value = random_tensor(rng, grid, shape) if fits else rng.standard_normal(shape).astype(np.float32)
            tensors[f"model.layers.{layer}.{name}_proj.weight"] = value
    (folder / "config.json").write_text(json.dumps(config))
    return QModel(config, tensors, folder)


@pytest.fixture(scope="module", params=GRIDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[QModel, Path]:
    model = tiny(tmp_path_factory.mktemp("model"), request.param)
    path = tmp_path_factory.mktemp("dist") / exporter.filename
    exporter.export(model, path)
    return model, path


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A fresh q4_0 folder to damage."""
    (tmp_path / "model").mkdir()
    exporter.export(tiny(tmp_path / "model", "q4_0"), tmp_path / "onnx")
    return tmp_path / "onnx"


def root(path: Path) -> str:
    return merkle_root({name: tensor_digest(name, stored.tensor) for name, stored in exporter.read_back(path).items()})


def test_read_back_gives_the_root_of_the_model(exported: tuple[QModel, Path]):
    model, path = exported
    assert root(path) == merkle_root(model.digests())


def test_names_are_those_in_the_file(exported: tuple[QModel, Path]):
    _, path = exported
    names = {t.name for t in onnx.load(path / "model.onnx", load_external_data=False).graph.initializer}
    for name, stored in exporter.read_back(path).items():
        assert stored.name == (f"{name}.codes" if isinstance(stored.tensor, QTensor) else name)
        assert stored.name in names


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
    first = trace.trace(CONFIG)
    trace._trace.cache_clear()
    assert trace.trace(CONFIG) == first


@pytest.mark.slow
def test_another_process_traces_the_same_and_says_nothing():
    program = (
        "import json, sys; from exporters.onnx import trace;"
        "graph = trace.trace(json.loads(sys.argv[1])).graph;"
        "sys.stdout.buffer.write(graph.SerializeToString(deterministic=True))"
    )
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-W", "error", "-c", program, json.dumps(CONFIG)]
    ran = subprocess.run(command, capture_output=True, env=os.environ | environment, check=True)
    assert ran.stdout == trace.trace(CONFIG).graph.SerializeToString(deterministic=True)
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
    assert [p.key for p in model.metadata_props] == ["edgeqaf.grids"]
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    assert (path / "model.onnx").stat().st_mode & 0o777 == (path / "config.json").stat().st_mode & 0o777


def test_onnx_accepts_it(exported: tuple[QModel, Path]):
    _, path = exported
    onnx.checker.check_model(str(path / "model.onnx"), full_check=True)
    model = onnx.load(path / "model.onnx", load_external_data=False)
    types = {onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    expected = (13, [("", 25)]) if "UINT2" in types else (10, [("", 21)])
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
    assert tensor_digest("w", read.whole()) == tensor_digest("w", q)
    found, expected = (each(1, rows - 1) for each in (read.read, runs.rows_in(q, "w")))
    assert all(np.array_equal(found[part], array) for part, array in expected.items())
    codes = np.fromfile(tmp_path / "data", np.uint8)[offsets["w.codes"] :][: stored[0].nbytes]
    reference = q.codes.T.reshape(-1) if form == "qdq" else (q.codes.astype(int) + 128 * (bits == 8)).reshape(-1)
    width = BITS_OF[bits]
    values = np.stack([codes >> (width * i) & (2**width - 1) for i in range(8 // width)], 1).reshape(-1)
    assert np.array_equal(values[: q.size], reference.astype(np.uint8) & (2**width - 1))


def test_a_profile_that_is_not_made_is_refused(tmp_path: Path):
    asked = ExportOptions(onnx=OnnxOptions(profile="exact"))
    with pytest.raises(Refused, match="ONNX with profile exact is not made by this version"):
        exporter.plan(replace(tiny(tmp_path, "q4_0"), asked=asked))


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


def _with_a_quantized_embedding(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed_tokens.weight"] = random_tensor(np.random.default_rng(0), "q4_0", (96, 64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_norm, "no tensor model.norm.weight"),
        (_with_a_stray, "no place for model.layers.0.extra.weight"),
        (_with_a_wide_norm, r"model.norm.weight: shape \(65,\), config.json makes it \(64,\)"),
        (_with_a_quantized_embedding, "model.embed_tokens.weight is quantized but feeds"),
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
        exporter.export(replace(model, config={**CONFIG, "hidden_act": "no such"}), tmp_path / "onnx")


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path / "model.onnx", load_external_data=False)
    change(model)
    (path / "model.onnx").write_bytes(model.SerializeToString())


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def locate(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(e for e in initializer(model, f"{Q_PROJ}.codes").external_data if e.key == key).value = value

    return change


def _swap_offsets(model: onnx.ModelProto) -> None:
    a, b = (initializer(model, f"{Q_PROJ.replace('q_proj', p)}.codes").external_data[1] for p in ("q_proj", "o_proj"))
    a.value, b.value = b.value, a.value


def _swap_weights(model: onnx.ModelProto) -> None:
    a, b = (
        next(n for n in model.graph.node if n.name == f"{Q_PROJ.replace('q_proj', p)}/dequantize")
        for p in ("q_proj", "o_proj")
    )
    a.input[0], b.input[0] = b.input[0], a.input[0]


def _double_a_block(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == f"{Q_PROJ}/dequantize")
    next(a for a in node.attribute if a.name == "block_size").i = 64


def _name_another_grid(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"q4_0"', '"q4_1"', 1)


def _name_no_grid(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"q4_0"', '"../q"', 1)


def _drop_the_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def _double_an_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(initializer(model, f"{Q_PROJ}.scale"))


def _reshape(model: onnx.ModelProto) -> None:
    initializer(model, f"{Q_PROJ}.codes").dims[:] = [2**40, 2**40]


def _add_an_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Anything", ["logits"], ["z"], domain="elsewhere"))


def _newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 22


def _detach_a_norm(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "model.norm.weight" in n.input)
    node.input[:] = [i if i != "model.norm.weight" else "model.layers.0.input_layernorm.weight" for i in node.input]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (locate("location", "../model.onnx.data"), "q_proj.weight.codes is stored at"),
        (locate("location", "/etc/passwd"), "q_proj.weight.codes is stored at"),
        (locate("offset", "-64"), "q_proj.weight.codes is stored at"),
        (locate("length", str(2**62)), "q_proj.weight.codes is stored at"),
        (_swap_offsets, "proj.weight.codes is stored at"),
        (_swap_weights, "codes is not read by one DequantizeLinear"),
        (_double_a_block, "'block_size': 64"),
        (_name_another_grid, "no initializer .*offset"),
        (_name_no_grid, "metadata edgeqaf.grids: unknown grid"),
        (_drop_the_metadata, r"metadata keys \[\]"),
        (_double_an_initializer, "defined twice"),
        (_reshape, f"stored at .*{2**80 // 2}"),
        (_add_an_operator, "elsewhere:Anything"),
        (_newer_opset, r"opsets \[\('', 22\)\]"),
        (_detach_a_norm, "model.norm.weight is not used"),
    ],
)
def test_an_edited_graph_is_refused(change: Callable[[onnx.ModelProto], None], reason: str, written: Path):
    edit(written, change)
    with pytest.raises(Refused, match=reason):
        exporter.read_back(written)


def _offset(path: Path, name: str) -> int:
    model = onnx.load(path / "model.onnx", load_external_data=False)
    return int(initializer(model, name).external_data[1].value)


def _patch(path: Path, name: str, raw: bytes) -> None:
    place = _offset(path, name)
    with open(path / graph.DATA, "r+b") as data:
        data.seek(place)
        data.write(raw)


@pytest.mark.parametrize("file", [graph.MODEL, graph.DATA])
@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_file_is_refused(file: str, keep: int, written: Path):
    raw = (written / file).read_bytes()
    (written / file).write_bytes(raw[:keep])
    with pytest.raises(Refused, match=file):
        exporter.read_back(written)


def test_a_longer_file_is_refused(written: Path):
    with open(written / graph.DATA, "ab") as data:
        data.write(b"\0")
    with pytest.raises(Refused, match=r"model.onnx.data has \d+ bytes, its tensors take \d+"):
        exporter.read_back(written)


@pytest.mark.parametrize("file", [graph.MODEL, graph.DATA])
def test_links_are_refused(file: str, written: Path):
    real = written.parent / file
    (written / file).rename(real)
    (written / file).symlink_to(real)
    with pytest.raises(Refused, match=file):
        exporter.read_back(written)
    (written / file).unlink()
    (written / file).hardlink_to(real)
    with pytest.raises(Refused, match=f"{file} is not a regular file of its own .2 links."):
        exporter.read_back(written)


def test_values_off_the_grid_are_refused(written: Path):
    _patch(written, f"{Q_PROJ}.scale", np.array([0.1], "<f4").tobytes())
    with pytest.raises(GridError, match=r"q_proj.weight.scale\[0, 0\] = .*0\.1.* is not a finite float16 value"):
        exporter.read_back(written)[Q_PROJ]
    _patch(written, f"{K_PROJ}.zero_point", b"\x98")
    with pytest.raises(Refused, match=r"k_proj.weight.zero_point holds 9, q4_0 has 8"):
        exporter.read_back(written)[K_PROJ]
    _patch(written, "model.norm.weight", np.array([np.nan], "<f4").tobytes())
    with pytest.raises(Refused, match=r"model.norm.weight holds values that are not finite"):
        exporter.read_back(written)["model.norm.weight"]


@pytest.mark.parametrize(
    ("stored", "claimed", "reason"),
    [
        ("q4_0", "q3_0", "zero_point holds 8, q3_0 has 4 everywhere"),
        ("q3_0", "q4_0", "zero_point holds 4, q4_0 has 8 everywhere"),
        ("q4_1", "q3_1", "zero_point holds 8, q3_1 has 4 everywhere"),
        ("uint4", "uint3", r"codes span \[0, 15\], outside uint3's \[0, 7\]"),
        ("q2_0", "q3_0", r"IR 13, opsets \[\('', 25\)\]; expected IR 10, opset 21"),
        ("q4_0", "q2_0", r"IR 10, opsets \[\('', 21\)\]; expected IR 13, opset 25"),
        ("q2_0", "uint4_x", "metadata edgeqaf.grids: unknown grid"),
    ],
)
def test_a_folder_that_claims_another_grid_is_refused(stored: str, claimed: str, reason: str, tmp_path: Path):
    exporter.export(tiny(tmp_path, stored), tmp_path / "onnx")

    def rename(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = model.metadata_props[0].value.replace(f'"{stored}"', f'"{claimed}"')

    edit(tmp_path / "onnx", rename)
    with pytest.raises(Refused, match=reason):
        exporter.read_back(tmp_path / "onnx")[Q_PROJ]


def test_a_code_beyond_three_bits_is_refused(tmp_path: Path):
    exporter.export(tiny(tmp_path, "q3_0"), tmp_path / "onnx")
    _patch(tmp_path / "onnx", f"{Q_PROJ}.codes", b"\x78")
    with pytest.raises(GridError, match=r"q_proj.weight: codes span \[0, 8\], outside q3_0's \[0, 7\]"):
        exporter.read_back(tmp_path / "onnx")[Q_PROJ]


def test_one_changed_code_changes_the_root(written: Path):
    before = root(written)
    with open(written / graph.DATA, "rb") as data:
        data.seek(_offset(written, f"{Q_PROJ}.codes"))
        (first,) = data.read(1)
    _patch(written, f"{Q_PROJ}.codes", bytes([first ^ 0x10]))
    assert root(written) != before
