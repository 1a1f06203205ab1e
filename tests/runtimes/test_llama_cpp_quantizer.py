"""llama.cpp's own quantizer makes a base: its very file, imported."""

from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeqaf import checkpoint, plugins
from edgeqaf.companions import companions_digest
from edgeqaf.errors import Refused, RuntimeAbsent, UsageError
from edgeqaf.imported import quantize_by_llama_cpp
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.qtensor import decode
from edgeqaf.source import FloatModel
from runtime_tests.ggml.quantize import file_types, read_imatrix

BASE = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
EXPORTER = plugins.find("exporters", "gguf")


@pytest.fixture(scope="module")
def q4_k_m(libllama, tmp_path_factory):
    return quantize_by_llama_cpp(BASE, tmp_path_factory.mktemp("bases") / "base", "Q4_K_M", RuntimeOptions(libllama, 1))


def test_the_base_has_llama_cpps_mix_of_types(q4_k_m):
    weights = Counter()
    for name, (grid, shape) in q4_k_m.outline().items():
        weights[grid] += int(np.prod(shape))
        assert (grid == "float32") == ("norm" in name)
    assert weights == {"q4_k": 4259840, "q6_k": 1507328, "float32": 3328}
    assert q4_k_m.manifest["options"].items() >= {"quantizer": "llama_cpp", "type": "Q4_K_M", "pure": False}.items()


def test_it_is_close_to_the_float_model_and_keeps_its_companions(q4_k_m):
    source = FloatModel(BASE)
    for name, q in q4_k_m.quantized():
        error = np.square(decode(q) - source[name]).sum() / np.square(source[name]).sum()
        assert error < 0.01, name
    theirs = companions_digest(BASE)
    assert {n: d for n, d in companions_digest(q4_k_m.folder).items() if n in theirs} == theirs | {
        "config.json": companions_digest(q4_k_m.folder)["config.json"]  # but for the line that names our quantizer
    }
    assert checkpoint.load(q4_k_m.folder).config == source.config


def test_export_gives_llama_cpps_own_file(q4_k_m, tmp_path):
    EXPORTER.export(q4_k_m, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert not [key for key in fields if key.startswith("edgeqaf.")]


@pytest.mark.parametrize(("kind", "grid"), [("Q4_0", "q4_0"), ("q5_1", "q5_1"), ("Q2_K", "q2_k"), ("TQ2_0", "tq2_0")])
def test_pure_types_are_one_grid(kind, grid, libllama, tmp_path):
    base = quantize_by_llama_cpp(BASE, tmp_path / "base", kind, RuntimeOptions(libllama, 1), pure=True)
    assert {q.grid.name for n, q in base.quantized() if "_proj" in n} == {grid}


def test_q4_0_is_the_unsearched_rule_bit_for_bit(libllama, tmp_path):
    base = quantize_by_llama_cpp(BASE, tmp_path / "base", "Q4_0", RuntimeOptions(libllama, 1), pure=True)
    source, absmax = FloatModel(BASE), plugins.find("quantizers", "absmax")
    for name, q in base.quantized():
        ours = absmax(source[name], q.grid)
        assert np.array_equal(ours.codes, q.codes)
        assert np.array_equal(ours.scale.view(np.uint32), q.scale.view(np.uint32))


def imatrix(path: Path, weight: float) -> Path:
    """As llama-imatrix writes it: sums of squares of each input, and over how many tokens."""
    writer = gguf.GGUFWriter(path, "llama")
    source = FloatModel(BASE)
    for i in range(source.config["num_hidden_layers"]):
        for name, place in (("attn_q", "self_attn.q_proj"), ("ffn_down", "mlp.down_proj")):
            inputs = source.shape(f"model.layers.{i}.{place}.weight")[1]
            sums = np.full((1, inputs), 8.0, np.float32)
            sums[:, : inputs // 2] *= weight
            writer.add_tensor(f"blk.{i}.{name}.weight.in_sum2", sums)
            writer.add_tensor(f"blk.{i}.{name}.weight.counts", np.full((1, 1), 4.0, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_importance_matrix_is_read_and_moves_codes(libllama, q4_k_m, tmp_path):
    path = imatrix(tmp_path / "imatrix.gguf", 100.0)
    means = read_imatrix(path)
    assert set(means) == {f"blk.{i}.{n}.weight" for i in range(6) for n in ("attn_q", "ffn_down")}
    assert means["blk.0.attn_q.weight"].tolist() == [200.0] * 128 + [2.0] * 128
    options = RuntimeOptions(libllama, 1)
    weighed = quantize_by_llama_cpp(BASE, tmp_path / "base", "Q4_K_M", options, imatrix=path)
    moved = {n for n, q in q4_k_m.quantized() if not np.array_equal(q.codes, weighed.tensors[n].codes)}
    assert {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(6)} <= moved
    assert not [name for name in moved if "up_proj" in name]
    assert len(weighed.manifest["options"]["imatrix"]) == 64


def test_an_unknown_type_and_another_kind_of_file_are_refused(tmp_path):
    assert file_types()["Q4_K_M"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    with pytest.raises(UsageError, match=r"llama\.cpp has no file type 'Q4_L'") as refused:
        quantize_by_llama_cpp(BASE, tmp_path / "base", "Q4_L", RuntimeOptions())
    assert "Q4_K_M" in refused.value.remedy
    model = BASE.parent / "tasks" / "everyday.yaml"
    with pytest.raises(Refused, match=r"everyday\.yaml"):
        read_imatrix(model)
    assert not (tmp_path / "base").exists()


def test_a_library_without_the_quantizer_is_named_with_the_way_out(tmp_path):
    if plugins.find("runtimes", "llama_cpp").availability(RuntimeOptions()).version is None:
        pytest.skip("xllamacpp is not installed")
    with pytest.raises(RuntimeAbsent, match="has no quantizer") as absent:
        quantize_by_llama_cpp(BASE, tmp_path / "base", "Q4_K_M", RuntimeOptions())
    assert "--llama-lib" in absent.value.remedy
    assert list(tmp_path.iterdir()) == []
