"""llama.cpp cuts a text into the tokens that the model was tuned on: every tokenizer, every text, every id."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from family_models import SHARED
from tokenizer_folders import FOLDERS, MADE, TEXTS, make
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgeqaf import plugins, spm
from edgeqaf.checkpoint import QModel
from edgeqaf.errors import Refused
from edgeqaf.exportoptions import ExportOptions
from edgeqaf.protocols import RuntimeOptions
from edgeqaf.tokenizer import Tokenizer
from exporters.gguf import exporter, families
from exporters.gguf.artifact import SIZES
from exporters.gguf.reader import parse
from runtime_tests.ggml.library import load
from runtime_tests.ggml.model import Model

available = plugins.find("runtimes", "llama_cpp").availability(RuntimeOptions())
in_llama_cpp = pytest.mark.skipif(available.version is None, reason=available.reason)
ONE_LAYER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
# llama.cpp's gpt-4o cuts before combining marks, GPT-4o's own rule does not; and it never composes letters (NFC).
DIFFERENT = {("gpt-4o", "unicode"), ("gpt-4o", "combining"), ("qwen2, composed", "combining")}


@dataclass(frozen=True)
class Made:
    """tokenizer: what the model is tuned with; encode: what llama.cpp makes of a text."""

    folder: Path
    model: QModel
    file: Path
    tokenizer: Tokenizer
    encode: Callable[[str], list[int]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A tokenizer by its name in a folder and in GGUF, around a model of zeros, and llama.cpp's own encoding."""
    made: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in made:
            folder = make(name, tmp_path_factory.mktemp("tokenizer"))
            model = zeros(folder)
            exporter.export(model, folder / "model.gguf")
            file = folder / "model.gguf"
            made[name] = Made(folder, model, file, Tokenizer(folder), encoder(file))
        return made[name]

    return get


def zeros(folder: Path) -> QModel:
    backend = Backend.from_file(str(folder / "tokenizer.json")) if (folder / "tokenizer.json").is_file() else None
    vocabulary = (backend or spm.backend(folder)).get_vocab()
    end = spm.settings_of(folder).get("eos_token", "<|endoftext|>")
    config = ONE_LAYER | {"vocab_size": 1 + max(vocabulary.values()), "eos_token_id": vocabulary[end]}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    family = families.named("llama")
    places = family.places(family.dimensions(config), tied=True)
    return QModel(config, {p.logical: np.zeros(p.shape, np.float32) for p in places}, folder)


def encoder(file: Path) -> Callable[[str], list[int]]:
    if available.version is None:
        return lambda text: pytest.skip(available.reason)
    return Model(load(None), file, repack=False, threads=1).encode


@in_llama_cpp
@pytest.mark.parametrize("name", FOLDERS)
def test_every_text_is_cut_alike(name: str, exported: Callable[[str], Made]) -> None:
    made = exported(name)
    different = {
        text for text, words in TEXTS.items() if made.tokenizer.encode(words, prompt=True) != made.encode(words)
    }
    assert different == {text for tokenizer, text in DIFFERENT if tokenizer == name}


@in_llama_cpp
@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in dict(DIFFERENT)])
def test_random_texts_are_cut_alike(name: str, exported: Callable[[str], Made]) -> None:
    made, rng = exported(name), random.Random(0)
    pieces = [*"".join(TEXTS.values()).replace("\0", ""), "  ", "    ", "\n\n", " the"]
    for text in ("".join(rng.choice(pieces) for _ in range(rng.randint(1, 30))) for _ in range(200)):
        assert made.tokenizer.encode(text, prompt=True) == made.encode(text), repr(text)


@pytest.mark.parametrize("name", ["gemma", "minimind", "phi3", "smollm"])
def test_transformers_cuts_as_the_tokenizer_json_says(name: str, exported: Callable[[str], Made]) -> None:
    made = exported(name)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(made.folder / "tokenizer.json"))
    for text in TEXTS.values():
        assert made.tokenizer.encode(text, prompt=True) == theirs(text)["input_ids"]


def test_a_bare_sentencepiece_model_is_cut_as_sentencepiece_does(exported: Callable[[str], Made]) -> None:
    from sentencepiece import SentencePieceProcessor

    made, rng = exported("llama2"), random.Random(0)
    theirs, ours = SentencePieceProcessor(str(made.folder / "tokenizer.model")), made.tokenizer
    letters = [*"abcdef  \n\t.,AB12▁é日🦙", "    ", " the", "return", "ing"]
    texts = ["".join(rng.choice(letters) for _ in range(rng.randint(1, 40))) for _ in range(500)]
    for text in [*TEXTS.values(), *texts]:
        assert ours.encode(text, prompt=True) == [1, *theirs.encode(text)]
        assert ours.encode(text, prompt=False) == theirs.encode(text)
        assert ours.decode(ours.encode(text, prompt=True)) == text.replace("▁", " ")
    # why this is not left to transformers: it puts the pieces of spaces first, which have the lowest score of all
    wrong = AutoTokenizer.from_pretrained(made.folder)("\n    return")["input_ids"]
    assert wrong != [1, *theirs.encode("\n    return")] == ours.encode("\n    return", prompt=True)


def test_added_tokens_and_flags_of_a_bare_sentencepiece_model(exported: Callable[[str], Made], tmp_path: Path) -> None:
    shutil.copyfile(exported("llama2").folder / "tokenizer.model", tmp_path / "tokenizer.model")
    settings = {
        "add_bos_token": False, "add_eos_token": True, "eos_token": {"content": "</s>"},
        "added_tokens_decoder": {"32001": {"content": "<|user|>", "special": True}},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 32000, "<|user|>": 32001}), "utf-8")
    tokenizer = spm.backend(tmp_path)
    assert tokenizer.encode("a<tool>b<|user|>").ids[-4:] == [32000, tokenizer.token_to_id("▁b"), 32001, 2]
    assert tokenizer.decode([32000, 32001], skip_special_tokens=True) == "<tool>"
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 32005}), "utf-8")
    with pytest.raises(Refused, match=r"'<\|user\|>' would get id 32000, not 32001"):
        spm.backend(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<start>"}), "utf-8")
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(Refused, match=r"'<start>' or None is not in the vocabulary"):
        spm.backend(tmp_path)


# ---- the tokenizer of another file


def unknown(folder: Path) -> Path:
    """The folder's tokenizer.json with a pre-tokenizer that llama.cpp has not."""
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    spec["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Punctuation", "behavior": "Isolated"})
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    return folder


@pytest.fixture
def orphan(exported: Callable[[str], Made], tmp_path: Path) -> QModel:
    """The qwen2 model with a tokenizer that GGUF export refuses."""
    folder = tmp_path / "orphan"
    shutil.copytree(exported("qwen2").folder, folder)
    return replace(exported("qwen2").model, folder=unknown(folder))


def test_an_unknown_pre_tokenizer_is_refused_with_the_way_out(orphan: QModel) -> None:
    with pytest.raises(Refused, match="no twin of the pre-tokenizer Punctuation") as refused:
        exporter.plan(orphan)
    assert "--tokenizer-from base.gguf" in refused.value.remedy


def test_a_borrowed_tokenizer_is_that_of_the_file(orphan: QModel, exported: Callable[[str], Made]) -> None:
    donor = exported("qwen2").file
    path = orphan.folder / "borrowed.gguf"
    exporter.export(replace(orphan, asked=ExportOptions(tokenizer_from=donor)), path)
    theirs, ours = (parse(file, SIZES).metadata for file in (donor, path))
    block = {key: value for key, value in theirs.items() if key.startswith("tokenizer.")}
    assert len(block) > 5
    assert repr({key: value for key, value in ours.items() if key.startswith("tokenizer.")}) == repr(block)
    assert path.read_bytes() == donor.read_bytes()  # the very file, as the tokenizer was its own
    assert encoder(path)("Hello world") == exported("qwen2").encode("Hello world")


def test_the_tokenizer_of_another_model_is_refused(orphan: QModel, exported: Callable[[str], Made]) -> None:
    with pytest.raises(Refused, match=r"has \d+ tokens, the model \d+ embedding rows"):
        exporter.plan(replace(orphan, asked=ExportOptions(tokenizer_from=exported("gemma").file)))
    with pytest.raises(Refused, match="No such file"):
        exporter.plan(replace(orphan, asked=ExportOptions(tokenizer_from=orphan.folder / "absent.gguf")))
    with pytest.raises(Refused, match=r"token 300 is '.+' in .*, and 'other' in"):
        exporter.plan(replace(renamed(orphan), asked=ExportOptions(tokenizer_from=exported("qwen2").file)))


def renamed(model: QModel) -> QModel:
    file = model.folder / "tokenizer.json"
    spec = json.loads(file.read_text("utf-8"))
    spec["model"]["vocab"] = {"other" if i == 300 else text: i for text, i in spec["model"]["vocab"].items()}
    file.write_text(json.dumps(spec), "utf-8")
    return model


def test_a_file_without_a_tokenizer_lends_none(orphan: QModel, tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Refused, match=r"bare\.gguf has no tokenizer"):
        exporter.plan(replace(orphan, asked=ExportOptions(tokenizer_from=tmp_path / "bare.gguf")))


def test_every_tokenizer_beside_the_checkout_is_tried() -> None:
    if not (SHARED / "tokenizers").is_dir():
        pytest.skip("no tokenizers beside the checkout")
    assert {folder.name for folder in (SHARED / "tokenizers").iterdir()} == set(FOLDERS) - set(MADE)
