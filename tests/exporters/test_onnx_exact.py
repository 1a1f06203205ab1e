"""The exact profile's folder holds exactly the model, and is refused if its digits are not those of its codes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_damage import INITIALIZER_CHANGES, edit, initializer, node_changes, patch
from onnx_models import GRIDS, K_PROJ, Q_PROJ, modest, root, tiny

from edgeqaf.checkpoint import QModel
from edgeqaf.digest import merkle_root
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ACTIVATIONS
from edgeqaf.qtensor import QTensor
from exporters.onnx import exporter, graph
from runtime_tests.interpreter import Program
from runtime_tests.onnx import worker

EMBEDDING = "model.embed_tokens.weight"
QKV = "+".join(Q_PROJ.replace("q_proj", f"{letter}_proj") for letter in "qkv")


def exact(folder: Path, grid: str, ends: str = "float", activations: str = "int16") -> QModel:
    return modest(tiny(folder, grid, ends, profile="exact", activations=activations))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A fresh folder to damage: q4_0, its embedding on it too."""
    (tmp_path / "model").mkdir()
    return exporter.export(exact(tmp_path / "model", "q4_0", "tied"), tmp_path / "onnx")


@pytest.mark.parametrize("ends", ["float", "tied", "untied"])
@pytest.mark.parametrize("grid", GRIDS)
def test_read_back_gives_the_root_of_the_model(grid: str, ends: str, tmp_path: Path):
    model = exact(tmp_path, grid, ends)
    size = sum(file.stat().st_size for file in exporter.export(model, tmp_path / "onnx").iterdir())
    assert root(tmp_path / "onnx") == merkle_root(model.digests())
    assert abs(exporter.plan(model) - size) <= size // 100


def test_all_of_a_tensor_can_be_had_at_once(written: Path):
    model = exact(written.parent / "model", "q4_0", "tied")
    for name, stored in exporter.read_back(written).items():
        wanted = model.tensors[name]
        if isinstance(wanted, QTensor):
            assert isinstance(stored.tensor, QTensor)
            assert np.array_equal(stored.tensor.codes, wanted.codes)
            assert np.array_equal(stored.tensor.scale, wanted.scale)
        else:
            assert np.array_equal(stored.tensor, wanted)


@pytest.mark.parametrize("ends", ["tied", "untied"])
@pytest.mark.parametrize("activations", ACTIVATIONS["exact"])
@pytest.mark.parametrize("grid", ["q4_0", "q4_1"])
def test_quantized_ends_give_equal_bits_too(grid: str, activations: str, ends: str, tmp_path: Path):
    exporter.export(exact(tmp_path, grid, ends, activations), tmp_path / "onnx")
    program, path = Program(tmp_path / "onnx" / graph.MODEL), str(tmp_path / "onnx" / graph.MODEL)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 9))
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in program.graph.input}
    feeds = {n: np.zeros((2, s[1], 0, s[3]), np.float32) for n, s in shapes.items() if n.startswith("past")}
    feeds |= {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(9)[None] + 0 * tokens,
    }
    expected = {name: value.numpy() for name, value in program(feeds).items()}
    for level in ("off", "all"):
        found = worker.load(path, {"level": level}).run(feeds)
        assert [n for n in expected if not np.array_equal(found[n].view("i4"), expected[n].view("i4"))] == []


def test_two_exports_are_byte_identical(written: Path, tmp_path: Path):
    exporter.export(exact(tmp_path, "q4_0", "tied"), tmp_path / "again")
    for file in written.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_runs_of_rows_make_the_file_of_whole_tensors(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("exporters.onnx.exact.columns.RUN", 32 * 64)
    monkeypatch.setattr("edgeqaf.runs.RUN", 7 * 64)
    exporter.export(exact(tmp_path, "q4_0", "tied"), tmp_path / "again")
    assert (tmp_path / "again" / graph.DATA).read_bytes() == (written / graph.DATA).read_bytes()
    assert root(tmp_path / "again") == root(written)


# ---- what is refused before anything is written


def test_weights_that_no_digits_hold_are_refused_by_name(tmp_path: Path):
    model = tiny(tmp_path, "q4_0", profile="exact", activations="int16")  # scales over all of float16
    for refused in (lambda: exporter.plan(model), lambda: exporter.export(model, tmp_path / "onnx")):
        with pytest.raises(Refused, match=r"_proj.weight: its weights take \d\d bits, the exact profile has 27"):
            refused()
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"profile": "exact"}, "profile exact with activations in float"),
        ({"profile": "everyday", "activations": "int16"}, "profile everyday with activations in int16"),
        ({"profile": "exact", "activations": "int8", "form": "matmulnbits"}, "profile exact in the form matmulnbits"),
    ],
)
def test_options_that_contradict_each_other_are_refused(asked: dict[str, str], reason: str, tmp_path: Path):
    with pytest.raises(Refused, match=reason):
        exporter.plan(modest(tiny(tmp_path, "q4_0", **asked)))


# ---- what was changed


@pytest.mark.parametrize(
    ("part", "raw", "at", "name", "reason"),
    [
        (f"{QKV}.low", b"\x40", 0, Q_PROJ, r"q_proj.weight\[0, 0\]: digit 0 is 64, its code and scale make it -?\d+"),
        (f"{QKV}.low", b"\x40", 64, K_PROJ, r"k_proj.weight\[0, 0\]: digit 0 is 64"),
        (f"{QKV}.low", b"\x40", 128 + 3, Q_PROJ, r"q_proj.weight\[3, 0\]: digit 1 is 64"),
        (f"{QKV}.high", b"\x40", 128 + 64 + 5, K_PROJ, r"k_proj.weight\[5, 1\]: digit 2 is 64"),
        (f"{QKV}.unit", b"\0\0\x80\x3f", 4 * 66, K_PROJ, r"k_proj.weight: its digits count other units"),
        (f"{EMBEDDING}.high", b"\x40", 96 * 5 + 7, EMBEDDING, r"embed_tokens.weight\[7, 5\]: digit 2 is 64"),
    ],
)
def test_other_digits_than_the_codes_are_refused(part: str, raw: bytes, at: int, name: str, reason: str, written: Path):
    patch(written, part, raw, at)
    tensors = exporter.read_back(written)
    with pytest.raises(Refused, match=reason):
        tensors[name]
    with pytest.raises(Refused, match=reason):
        root(written)


def test_another_code_than_the_digits_is_refused(written: Path):
    """Codes are no initializers: they lie where `parts` puts them, which is where the first of all parts is."""
    data = bytearray((written / graph.DATA).read_bytes())
    data[0] ^= 0x10
    (written / graph.DATA).write_bytes(data)
    with pytest.raises(Refused, match=r"embed_tokens.weight\[1, 0\]: digit \d is -?\d+, its code and scale make it"):
        root(written)


def _drop_a_shape(model: onnx.ModelProto) -> None:
    model.metadata_props[2].value = model.metadata_props[2].value.replace(f'"{Q_PROJ}":[64,64],', "")


def _widen_a_shape(model: onnx.ModelProto) -> None:
    model.metadata_props[2].value = model.metadata_props[2].value.replace(f'"{Q_PROJ}":[64,', f'"{Q_PROJ}":[128,')


def _say_it_in_words(model: onnx.ModelProto) -> None:
    model.metadata_props[2].value = model.metadata_props[2].value.replace(":[64,64]", ':["64",64]', 1)


def _claim_the_other_profile(model: onnx.ModelProto) -> None:
    model.metadata_props[1].value = model.metadata_props[1].value.replace('"exact"', '"everyday"').replace("16", "8")


def _claim_other_activations(model: onnx.ModelProto) -> None:
    model.metadata_props[1].value = model.metadata_props[1].value.replace("int16", "int8")


def _read_digits_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", [f"{QKV}.high"], ["copy"], name="copy"))


def _name_a_matrix_twice(model: onnx.ModelProto) -> None:
    initializer(model, f"{QKV}.high").name = f"{Q_PROJ}+{Q_PROJ}.high"


def _other_limits(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "MatMulInteger")
    node.input[2] = ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop_a_shape, f"{Q_PROJ} has a grid and no shape"),
        (_widen_a_shape, "is stored at"),
        (_say_it_in_words, "metadata edgeqaf.shapes: not of integers"),
        (_claim_the_other_profile, "in profile everyday"),
        (_claim_other_activations, "is read by 23 nodes, expected 18"),
        (_read_digits_elsewhere, "high is read by copy too"),
        (_name_a_matrix_twice, "not the digits of matrices that the file has"),
        (_other_limits, "MatMulInteger of .* is not as edgeqaf writes it"),
    ],
)
def test_an_edited_program_is_refused(change: object, reason: str, written: Path):
    edit(written, change)  # type: ignore[arg-type]
    with pytest.raises(Refused, match=reason):
        exporter.read_back(written)


def of_the_program(value: str) -> bool:
    """Whether it comes from outside the product or lookup."""
    return "weight" not in value and not value.startswith("exact.")


def test_every_field_of_every_node_of_a_matrix_is_held(written: Path):
    model = onnx.load(written / graph.MODEL, load_external_data=False)
    prefixes = (f"{QKV}/", f"{EMBEDDING}/", f"{EMBEDDING}.lookup/")
    own = [i for i, node in enumerate(model.graph.node) if node.name.startswith(prefixes)]
    assert len(own) > 40
    for place in own:
        for change in node_changes(model.graph.node[place], of_the_program):
            edit(written, lambda other, place=place, change=change: change(other.graph.node[place]), model)
            with pytest.raises(Refused):
                exporter.read_back(written)


def test_every_field_of_every_initializer_is_held(written: Path):
    model = onnx.load(written / graph.MODEL, load_external_data=False)
    for place, held in enumerate(model.graph.initializer):
        for change in INITIALIZER_CHANGES if held.external_data else ():
            edit(written, lambda other, i=place, change=change: change(other.graph.initializer[i]), model)
            with pytest.raises(Refused):
                exporter.read_back(written)


def test_every_constant_of_a_product_is_held(written: Path):
    """The powers, limits and axes: those in the graph itself."""
    model = onnx.load(written / graph.MODEL, load_external_data=False)
    used = {v for n in model.graph.node if n.name.startswith((f"{QKV}/", f"{EMBEDDING}.lookup/")) for v in n.input}
    own = [i for i, t in enumerate(model.graph.initializer) if t.name in used and not t.external_data]
    assert len(own) > 8
    for place in own:

        def flip(other: onnx.ModelProto, place: int = place) -> None:
            tensor = other.graph.initializer[place]
            tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]

        edit(written, flip, model)
        with pytest.raises(Refused):
            exporter.read_back(written)


def test_no_bit_of_the_program_can_change_unseen(written: Path):
    file = written / graph.MODEL
    whole = file.read_bytes()
    for place in np.linspace(0, len(whole) * 8 - 1, 100).astype(int):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        with pytest.raises(Refused):
            exporter.read_back(written)
