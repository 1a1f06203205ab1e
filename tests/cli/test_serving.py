"""What is written beside a model file for those who serve it, and which contradictions are told."""

import json
import shutil
from pathlib import Path

import pytest

from edgeqaf.serving import serving

STORYTELLER = Path(__file__).resolve().parents[2] / "examples" / "storyteller-6m"
BEGIN = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A copy of the demo model's companion files, to be changed."""
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(STORYTELLER / name, tmp_path / name)
    return tmp_path


def change(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / f"{name}.json").read_text("utf-8")) | values
    (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")


def test_the_demo_model_has_nothing_to_doubt(folder):
    found = serving(folder)
    assert (found.doubts, found.stops, found.context) == ([], ["<|endoftext|>"], 1024)
    assert found.modelfile("model.gguf").splitlines() == [
        "FROM ./model.gguf", "PARAMETER num_ctx 1024", 'PARAMETER stop "<|endoftext|>"'
    ]  # fmt: skip
    assert found.llama_server("model.gguf") == "llama-server -m model.gguf -c 1024"


def test_sampling_is_taken_from_the_generation_config_where_it_samples(folder):
    sampling = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    change(folder, "generation_config", **sampling)
    assert serving(folder).sampling == {}
    change(folder, "generation_config", do_sample=True)
    found = serving(folder)
    assert found.sampling == sampling
    assert "PARAMETER repeat_penalty 1.05\n" in found.modelfile("m.gguf")
    assert found.llama_server("m.gguf").endswith("-c 1024 --temp 0.7 --top-k 20 --top-p 0.8 --repeat-penalty 1.05")


def test_every_end_token_is_a_stop(folder):
    change(folder, "generation_config", eos_token_id=[0, 2])
    assert serving(folder).stops == ["<|endoftext|>", "<|user|>"]
    assert serving(folder).doubts == []


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("config", {"eos_token_id": 2}, "different eos tokens: config.json 2, generation_config.json 0, tokeni"),
        ("tokenizer_config", {"eos_token": "<|pad|>"}, "generation_config.json 0, tokenizer_config.json 1;"),
        ("tokenizer_config", {"bos_token": {"content": "<|user|>"}}, "different bos tokens: config.json 0"),
        ("generation_config", {"eos_token_id": [2, 3]}, "tokenizer_config.json 0; generation ends at [2, 3]"),
    ],
)  # fmt: skip
def test_files_that_name_different_tokens_are_told(file, values, said, folder):
    change(folder, file, **values)
    (doubt,) = serving(folder).doubts
    assert said in doubt


def test_two_begin_tokens_are_told(folder):
    change(folder, "tokenizer_config", chat_template="{{ bos_token }}{{ messages }}")
    assert serving(folder).template
    assert serving(folder).llama_server("m.gguf").endswith(" --jinja")
    assert serving(folder).doubts == []
    change(folder, "tokenizer", post_processor=BEGIN)
    (doubt,) = serving(folder).doubts
    assert doubt.startswith("the chat template writes <|endoftext|>, and the tokenizer puts one before every prompt")


def test_export_writes_the_modelfile_and_says_what_to_doubt(shell, tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    shell.ok("export", tmp_path / "base", "--format", "gguf", "-o", "dist")
    assert Path("dist", "Modelfile").read_text().startswith("FROM ./model.gguf\n")
    card = Path("dist", "README.md").read_text()
    assert "llama-server -m model.gguf -c" in card
    assert "ollama create NAME -f Modelfile" in card
    shell.ok("export", tmp_path / "base", "--format", "onnx", "-o", "other")
    assert not Path("other", "Modelfile").exists()
