"""What an artifact says beside its tensors is derived again, to the last key and node, and each change is named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeqaf import checkpoint, plugins
from edgeqaf.exportoptions import ExportOptions, OnnxOptions
from edgeqaf.protocols import Artifact
from edgeqaf.report import Verdict
from edgeqaf.statements import model_of, versions
from runtime_tests import ladder

GGUF = plugins.find("exporters", "gguf")
ONNX = plugins.find("exporters", "onnx")
WAYS = {
    "gguf": ("gguf", ExportOptions()),
    "split": ("gguf", ExportOptions(split_max_bytes=100_000)),
    "onnx": ("onnx", ExportOptions()),
    "matmulnbits": ("onnx", ExportOptions(onnx=OnnxOptions(form="matmulnbits", accuracy_level=4))),
    "int8": ("onnx", ExportOptions(onnx=OnnxOptions(activations="int8"))),
    "exact": ("onnx", ExportOptions(onnx=OnnxOptions("exact", activations="int16"))),
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(artifact, what its receipt would say was asked)."""
    format, asked = WAYS[request.param]
    model = replace(checkpoint.load(tiny_base), asked=asked)
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(tiny_base, folder / "reference")
    return exported(model, format, folder, folder / "reference"), asked.recorded([format])


def exported(model: Any, format: str, folder: Path, reference: Path) -> Artifact:
    exporter = plugins.find("exporters", format)
    path = exporter.export(model, folder / exporter.filename)
    return Artifact(format, path, exporter.read_back(path), reference)


def checked(artifact: Artifact, asked: Any, **changed: str) -> Any:
    exporter = plugins.find("exporters", artifact.format)
    return ladder.check_statements(artifact, asked, versions(exporter) | changed)


def test_a_sound_artifact_says_what_it_should(way: tuple[Artifact, Any]) -> None:
    found = checked(*way)
    assert (found.rung, found.verdict, found.wrong, found.unit) == ("R0", Verdict.EXACT, (), "statements")
    exporter = plugins.find("exporters", way[0].format)
    assert found.compared == len(exporter.stated(way[0].path)) > 20


def test_another_reference_is_told(way: tuple[Artifact, Any], tmp_path: Path) -> None:
    """A rotation base in config.json that is not the artifact's."""
    artifact, asked = way
    if asked not in ({}, WAYS["onnx"][1].recorded(["onnx"])):
        pytest.skip("one program is enough: each base is traced anew")
    shutil.copytree(artifact.reference, tmp_path / "reference")
    config = tmp_path / "reference" / "config.json"
    text = config.read_text("utf-8")
    assert '"rope_theta": 10000.0' in text
    config.write_text(text.replace('"rope_theta": 10000.0', '"rope_theta": 10001.0'), "utf-8")
    found = checked(replace(artifact, reference=tmp_path / "reference"), asked)
    assert found.verdict is Verdict.DIFFERENT
    assert any("rope" in name or "initializer" in name for name in found.wrong), found.wrong


def test_a_difference_under_other_versions_proves_nothing(way: tuple[Artifact, Any]) -> None:
    artifact, asked = way
    other = {"onnx": {**asked.get("onnx", {}), "accuracy_level": 2}} if artifact.format == "onnx" else asked
    if other == asked:
        pytest.skip("a GGUF file depends on no tool but edgeqaf")
    assert checked(artifact, other).verdict is Verdict.DIFFERENT
    found = checked(artifact, other, torch="1.0")
    assert found.verdict is Verdict.ABSENT
    assert "made with torch 1.0: nothing to compare with here" in found.detail


def test_every_value_of_a_gguf_header_is_compared(tiny_base: Path, tmp_path: Path) -> None:
    artifact = exported(checkpoint.load(tiny_base), "gguf", tmp_path, tiny_base)
    whole = artifact.path.read_bytes()
    for key in GGUF.stated(artifact.path):
        if key == "general.architecture":
            continue  # there is no such file: it is refused

        def change(metadata: dict[str, Any], key: str = key) -> None:
            value = metadata[key]
            metadata[key] = replace(value, data=changed(value.data))

        GGUF.forge(artifact.path, change)
        found = checked(artifact, {})
        assert found.verdict in (Verdict.DIFFERENT, Verdict.REFUSED), key
        assert key in (found.wrong or found.detail) or found.verdict is Verdict.REFUSED
        artifact.path.write_bytes(whole)
    assert checked(artifact, {}).verdict is Verdict.EXACT


def changed(data: Any) -> Any:
    """Something else of the same type."""
    if isinstance(data, bytes):
        return data + b"x"
    if isinstance(data, (list,)):
        return [*data[:-1], data[-1] + b"x"]
    if isinstance(data, bool):
        return not data
    if isinstance(data, (int, float)):
        return data + 1 if data not in (0, 1) else 1 - data
    made = data.copy()
    made[-1] = made[-1] + 1
    return made


def test_a_borrowed_tokenizer_is_left_out(tiny_base: Path, tmp_path: Path) -> None:
    donor = exported(checkpoint.load(tiny_base), "gguf", tmp_path, tiny_base).path
    asked = ExportOptions(tokenizer_from=donor)
    (tmp_path / "other").mkdir()
    artifact = exported(replace(checkpoint.load(tiny_base), asked=asked), "gguf", tmp_path / "other", tiny_base)
    assert asked.recorded(["gguf"]) == {"gguf": {"tokenizer_from": donor.name}}
    assert model_of(artifact, asked.recorded(["gguf"])).asked.tokenizer_from == artifact.path
    assert checked(artifact, asked.recorded(["gguf"])).verdict is Verdict.EXACT


@pytest.mark.parametrize("edit", ["attribute", "input", "file"])
def test_a_change_of_an_onnx_folder_is_named(edit: str, tiny_base: Path, tmp_path: Path) -> None:
    artifact = exported(checkpoint.load(tiny_base), "onnx", tmp_path, tiny_base)
    changes: dict[str, Callable[[Any], object]] = {
        "attribute": lambda model: setattr(norm(model).attribute[0], "f", 1.0),
        "input": lambda model: norm(model).input.__setitem__(1, "model.norm.weight"),
        "file": lambda model: (artifact.path / "more.json").write_text("{}"),
    }
    ONNX.forge(artifact.path, changes[edit])
    found = checked(artifact, {"onnx": {}})
    assert found.verdict is Verdict.DIFFERENT
    assert found.wrong == (("more.json",) if edit == "file" else (f"model.onnx: node {norm_name(artifact)}",))


def norm(model: Any) -> Any:
    return next(node for node in model.graph.node if any(a.name == "epsilon" for a in node.attribute))


def norm_name(artifact: Artifact) -> str:
    import onnx

    return str(norm(onnx.load(artifact.path / "model.onnx", load_external_data=False)).name)


def test_a_frame_that_came_with_the_model_is_held_against(shared: Path, tmp_path: Path) -> None:
    """A GGUF file of llama.cpp's, imported and exported: metadata and rope factors are those of its frame."""
    source = shared / "models" / "storyteller-6m-gguf" / "storyteller-Q4_0.gguf"
    (tmp_path / "companions").mkdir()
    base = GGUF.open_base(source, tmp_path / "companions")
    artifact = exported(base, "gguf", tmp_path, base.folder)
    assert checked(artifact, {}).verdict is Verdict.EXACT
