"""An ONNX folder that is not as it was exported is refused, whatever was changed, even where it was sealed anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_damage import INITIALIZER_CHANGES, edit, initializer, node_changes, offset, patch
from onnx_models import K_PROJ, Q_PROJ, root, tiny

from edgeqaf.errors import GridError, Refused
from exporters.onnx import exporter, graph


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A fresh q4_0 folder to damage."""
    (tmp_path / "model").mkdir()
    exporter.export(tiny(tmp_path / "model", "q4_0"), tmp_path / "onnx")
    return tmp_path / "onnx"


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
        (_swap_weights, "is not as edgeqaf writes it"),
        (_double_a_block, "q_proj.weight/dequantize: DequantizeLinear of .* is not as edgeqaf writes it"),
        (_name_another_grid, "no initializer .*offset"),
        (_name_no_grid, "metadata edgeqaf.grids: unknown grid"),
        (_drop_the_metadata, r"metadata keys \['edgeqaf.sha256'\]"),
        (_double_an_initializer, "defined twice"),
        (_reshape, "q_proj.weight.codes is stored at"),
        (_add_an_operator, "elsewhere:Anything"),
        (_newer_opset, r"opsets \[\('', 22\)\]"),
        (_detach_a_norm, "model.norm.weight is not used"),
    ],
)
def test_an_edited_graph_is_refused(change: Callable[[onnx.ModelProto], None], reason: str, written: Path):
    edit(written, change)
    with pytest.raises(Refused, match=reason):
        exporter.read_back(written)


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
    patch(written, f"{Q_PROJ}.scale", np.array([0.1], "<f4").tobytes())
    with pytest.raises(GridError, match=r"q_proj.weight.scale\[0, 0\] = .*0\.1.* is not a finite float16 value"):
        exporter.read_back(written)[Q_PROJ]
    patch(written, f"{K_PROJ}.zero_point", b"\x98")
    with pytest.raises(Refused, match=r"k_proj.weight.zero_point holds 9, q4_0 has 8"):
        exporter.read_back(written)[K_PROJ]
    patch(written, "model.norm.weight", np.array([np.nan], "<f4").tobytes())
    with pytest.raises(Refused, match=r"model.norm.weight holds values that are not finite"):
        exporter.read_back(written)["model.norm.weight"]


@pytest.mark.parametrize(
    ("stored", "claimed", "reason"),
    [
        ("q4_0", "q3_0", "zero_point holds 8, q3_0 has 4 everywhere"),
        ("q3_0", "q4_0", "zero_point holds 4, q4_0 has 8 everywhere"),
        ("q4_1", "q3_1", "_proj.weight/centre: Mul of .* is not as edgeqaf writes it"),
        ("uint4", "uint3", r"codes span \[0, 15\], outside uint3's \[0, 7\]"),
        ("q2_0", "q3_0", r"IR 13, opsets \[\('', 25\)\]; expected IR 11"),
        ("q4_0", "q2_0", r"IR 11, opsets \[\('', 23\)\]; expected IR 13"),
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
    patch(tmp_path / "onnx", f"{Q_PROJ}.codes", b"\x78")
    with pytest.raises(GridError, match=r"q_proj.weight: codes span \[0, 8\], outside q3_0's \[0, 7\]"):
        exporter.read_back(tmp_path / "onnx")[Q_PROJ]


def test_one_changed_code_changes_the_root(written: Path):
    before = root(written)
    with open(written / graph.DATA, "rb") as data:
        data.seek(offset(written, f"{Q_PROJ}.codes"))
        (first,) = data.read(1)
    patch(written, f"{Q_PROJ}.codes", bytes([first ^ 0x10]))
    assert root(written) != before


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_no_bit_of_the_program_can_change_unseen(form: str, tmp_path: Path):
    """Every field of every initializer and node is some of these bits; two hundred of them, drawn evenly."""
    exporter.export(tiny(tmp_path, "q4_1", "tied", form=form), tmp_path / "onnx")
    file = tmp_path / "onnx" / graph.MODEL
    whole = file.read_bytes()
    for place in np.linspace(0, len(whole) * 8 - 1, 200).astype(int):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        with pytest.raises(Refused):
            exporter.read_back(tmp_path / "onnx")


def value_of_the_program(value: str) -> bool:
    """Whether it comes from outside the linear or lookup: the traced program's own, or the ids."""
    return "weight" not in value and not value.startswith(("centre.", "blocks.", "last_axis"))


FORMS = [(form, activations) for form in ("qdq", "matmulnbits") for activations in ("float", "int8")]


@pytest.mark.parametrize("grid", ["q4_0", "q4_1", "uint4"])
@pytest.mark.parametrize(("form", "activations"), FORMS)
def test_every_field_of_every_node_of_a_quantized_tensor_is_held(
    form: str, activations: str, grid: str, tmp_path: Path
):
    """Sealed anew after the change: type, domain, each input, each output but the last, each attribute."""
    exporter.export(tiny(tmp_path, grid, "tied", form=form, activations=activations), tmp_path / "onnx")
    model = onnx.load(tmp_path / "onnx" / graph.MODEL, load_external_data=False)
    prefixes = (f"{Q_PROJ}/", "model.embed_tokens.weight/", "model.embed_tokens.weight.lookup/")
    own = [i for i, node in enumerate(model.graph.node) if node.name.startswith(prefixes)]
    assert len(own) > 10
    for place in own:
        for change in node_changes(model.graph.node[place], value_of_the_program):
            edit(tmp_path / "onnx", lambda other, place=place, change=change: change(other.graph.node[place]), model)
            with pytest.raises(Refused):
                exporter.read_back(tmp_path / "onnx")


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_every_field_of_every_initializer_is_held(form: str, tmp_path: Path):
    exporter.export(tiny(tmp_path, "q4_1", "tied", form=form), tmp_path / "onnx")
    model = onnx.load(tmp_path / "onnx" / graph.MODEL, load_external_data=False)

    for place, held in enumerate(model.graph.initializer):
        for change in INITIALIZER_CHANGES if held.external_data else ():
            edit(tmp_path / "onnx", lambda other, i=place, change=change: change(other.graph.initializer[i]), model)
            with pytest.raises(Refused):
                exporter.read_back(tmp_path / "onnx")
