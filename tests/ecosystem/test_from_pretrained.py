"""`AutoModelForCausalLM.from_pretrained` on our folders: the stored integers, `build`'s very logits, or a refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import edgeqaf.hf.quantizer
from edgeqaf import checkpoint, dist, plugins
from edgeqaf.checkpoint import MANIFEST, WEIGHTS
from edgeqaf.companions import LINE, companions_digest
from edgeqaf.ends import QEmbedding, QHead
from edgeqaf.errors import Refused
from edgeqaf.imported import import_base
from edgeqaf.modeling import build
from edgeqaf.nn import QLinear, qlinears
from edgeqaf.quantize import quantize

STORYTELLER = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
IDS = torch.tensor([[5, 6, 7, 8, 100, 200, 4000, 3]])


def ours(folder: Path) -> torch.nn.Module:
    stored = checkpoint.load(folder)
    return build(stored.config, stored.tensors)


def theirs(folder: Path, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def require_same(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    """Equal integers, scales and zeros in every layer, and equal bits in every logit."""
    expected = qlinears(wanted)
    assert expected
    assert qlinears(found).keys() == expected.keys()
    for name, layer in qlinears(found).items():
        for part in ("codes", "scale", "zero"):
            a, b = getattr(layer, part), getattr(expected[name], part)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), f"{name}.{part}"
    assert torch.equal(logits(found), logits(wanted))


@pytest.mark.parametrize("grid", [n for n in plugins.names("grids") if plugins.find("grids", n).fits(64)])
def test_a_base_on_every_grid(grid, based_on):
    require_same(theirs(based_on(grid)), ours(based_on(grid)))


def test_a_merged_folder_and_its_witness(merged, tiny_base):
    found = theirs(merged)
    require_same(found, ours(merged))
    assert not torch.equal(logits(found), logits(theirs(tiny_base)))


def test_a_trained_model(tmp_path):
    quantize(STORYTELLER, tmp_path / "base", "q4_0", "rtn")
    found = theirs(tmp_path / "base")
    require_same(found, ours(tmp_path / "base"))
    prompt = AutoTokenizer.from_pretrained(tmp_path / "base")("Once upon a time", return_tensors="pt")
    greedy = {"max_new_tokens": 8, "do_sample": False}
    made = found.generate(**prompt, **greedy)
    assert torch.equal(made, ours(tmp_path / "base").generate(**prompt, **greedy))
    text = pipeline("text-generation", model=str(tmp_path / "base"))("Once upon a time", **greedy)
    assert text[0]["generated_text"].startswith("Once upon a time, there was a")


@pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"device_map": "auto"}, {"dtype": "auto"}], ids=str)
def test_these_options_change_nothing(options, tiny_base):
    require_same(theirs(tiny_base, **options), ours(tiny_base))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("when", ["loaded", "moved"])
def test_a_dtype_is_that_of_activations_and_never_of_scales(dtype, when, tiny_base):
    found = theirs(tiny_base, dtype=dtype) if when == "loaded" else theirs(tiny_base).to(dtype)
    assert found.get_input_embeddings().weight.dtype == dtype
    assert logits(found).dtype == dtype
    for name, layer in qlinears(ours(tiny_base)).items():
        assert torch.equal(qlinears(found)[name].scale, layer.scale)
        assert torch.equal(qlinears(found)[name].codes, layer.codes)


def test_no_float_weight_of_a_quantized_layer_is_in_the_model(tiny_base):
    found = theirs(tiny_base)
    assert not [name for name, _ in found.named_parameters() if name in qlinears(found)]
    assert not [name for name in found.state_dict() if name in qlinears(found)]
    assert all(isinstance(m, QLinear) for n, m in found.named_modules() if n.endswith("_proj"))
    assert not any(buffer.is_meta for buffer in found.buffers())


def test_generation_decodes_the_weights_once(tiny_base, monkeypatch):
    decoded = []
    from edgeqaf import nn

    weights = nn.weights
    monkeypatch.setattr(nn, "weights", lambda packed, *rest: decoded.append(packed) or weights(packed, *rest))
    found = theirs(tiny_base)
    found.generate(IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert len(decoded) == len(qlinears(found))


def test_saving_is_refused_and_says_where_the_folder_is(tiny_base, tmp_path, monkeypatch):
    said = []
    logger = edgeqaf.hf.quantizer.logging.get_logger("transformers")
    monkeypatch.setattr(logger, "warning", said.append)
    with pytest.raises(ValueError, match="quantized with edgeqaf and is not serializable"):
        theirs(tiny_base).save_pretrained(tmp_path / "saved")
    assert said == [
        f"save_pretrained cannot write a folder of edgeqaf; copy {tiny_base}, "
        "or make another with edgeqaf quantize or edgeqaf merge"
    ]
    assert not (tmp_path / "saved").exists()


def test_a_float_model_is_not_quantized_on_the_way(tiny_float_model):
    with pytest.raises(Refused, match="cannot put a float model on a grid"):
        theirs(tiny_float_model, quantization_config=edgeqaf.hf.quantizer.GridConfig())


def test_another_head_is_refused_by_the_tensor_it_needs(tiny_base):
    with pytest.raises(Refused, match=r"score\.weight is not stored, and LlamaForSequenceClassification needs it"):
        AutoModelForSequenceClassification.from_pretrained(tiny_base)


def edit_scale(folder: Path) -> str:
    arrays = load_file(folder / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    arrays[f"{name}.scale"] = np.nextafter(arrays[f"{name}.scale"], np.float16(0))
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    return rf"{name} does not match its digest"


def edit_norm(folder: Path) -> str:
    arrays = load_file(folder / WEIGHTS)
    save_file(
        {**arrays, "model.norm.weight": arrays["model.norm.weight"] * 2}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    return r"model\.norm\.weight does not match its digest"


def edit_config(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}), "utf-8")
    return r"config\.json is not the file that edgeqaf\.json names"


def one_layer_more(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    changed = {**config, "num_hidden_layers": config["num_hidden_layers"] + 1}
    (folder / "config.json").write_text(json.dumps(changed), "utf-8")
    return r"model\.layers\.2\.input_layernorm\.weight is not stored, and LlamaForCausalLM needs it"


def another_size(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}), "utf-8")
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["companions"] = companions_digest(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return r"model\.layers\.0\.mlp\.down_proj\.weight has shape \[64, 96\], config\.json implies \[64, 128\]"


def no_manifest(folder: Path) -> str:
    (folder / MANIFEST).unlink()
    return r"has no edgeqaf\.json beside model\.safetensors"


def unknown_key(folder: Path) -> str:
    text = (folder / "config.json").read_text("utf-8")
    (folder / "config.json").write_text(text.replace('"edgeqaf"}', '"edgeqaf", "bits": 4, "act": 8}'), "utf-8")
    return "quantization_config has act, bits"


@pytest.mark.parametrize(
    "damage", [edit_scale, edit_norm, edit_config, one_layer_more, another_size, no_manifest, unknown_key]
)
def test_a_folder_that_is_not_what_it_says_is_refused(damage, copy, tiny_base):
    folder = copy(tiny_base)
    says = damage(folder)
    with pytest.raises(Refused, match=says):
        theirs(folder)


def test_config_json_is_the_sources_and_one_line(tiny_float_model, tiny_base, merged):
    source = (tiny_float_model / "config.json").read_bytes()
    for folder in (tiny_base, merged):
        config = (folder / "config.json").read_bytes()
        assert config.replace(LINE, b"", 1) == source
        assert json.loads(config) == {**json.loads(source), "quantization_config": {"quant_method": "edgeqaf"}}
        assert checkpoint.load(folder).config == json.loads(source)


def test_what_is_exported_is_without_the_line(tiny_float_model, merged, tmp_path):
    dist.export(checkpoint.load(merged), ["gguf", "onnx"], tmp_path / "dist")
    source = (tiny_float_model / "config.json").read_bytes()
    assert (tmp_path / "dist" / "reference" / "config.json").read_bytes() == source
    assert (tmp_path / "dist" / "onnx" / "config.json").read_bytes() == source
    for file in (tmp_path / "dist").rglob("*"):
        assert not file.is_file() or b"quant_method" not in file.read_bytes(), file


def test_a_folder_without_the_line_is_read_by_edgeqaf_as_ever(copy, tiny_base):
    folder = copy(tiny_base)
    config = (folder / "config.json").read_bytes().replace(LINE, b"", 1)
    (folder / "config.json").write_bytes(config)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**manifest, "companions": companions_digest(folder)}), "utf-8")
    checkpoint.verify(checkpoint.load(folder))
    assert torch.equal(logits(ours(folder)), logits(ours(tiny_base)))


def test_a_quantized_source_is_refused(copy, tiny_float_model, tmp_path):
    folder = copy(tiny_float_model)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}), "utf-8")
    with pytest.raises(Refused, match=r"config\.json has a quantization_config"):
        quantize(folder, tmp_path / "base", "q4_0", "rtn")
    assert not (tmp_path / "base").exists()


def test_a_folder_from_a_gguf_file_loads_with_both_ends_quantized(shared, tmp_path):
    base = import_base(shared / "models" / "storyteller-6m-gguf" / "storyteller-Q4_K_M.gguf", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, build(base.config, base.tensors)(input_ids=ids).logits)
        assert model.generate(ids[:, :5], max_new_tokens=5, do_sample=False).shape == (1, 10)
    assert isinstance(model.get_input_embeddings(), QEmbedding)
    assert isinstance(model.lm_head, QHead)
