"""The tokenizer inside a GGUF file is the folder's own, or the export is refused."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from edgeqaf.errors import Refused
from exporters.gguf.tokenizer import tokenizer_metadata

CHECKOUT = Path(__file__).resolve().parents[2]
STORYTELLER = CHECKOUT / "examples" / "storyteller-6m"
SHARED = CHECKOUT.parent / "shared"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
EOS = {"eos_token_id": 0}


def read(folder: Path, vocab_size: int, config: dict[str, object] | None = None) -> dict[str, object]:
    """Short key -> value, strings as text."""
    entries = tokenizer_metadata(folder, config or {}, vocab_size)
    plain = {k: v.data.decode() if isinstance(v.data, bytes) else v.data for k, v in entries.items()}
    return {k.removeprefix("tokenizer.").removeprefix("ggml."): v for k, v in plain.items()}


def shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the checkout")
    return path


def byte_level(folder: Path, **changes: object) -> Path:
    """A small byte-level tokenizer.json; keyword arguments set attributes of the tokenizer."""
    tokenizer = Tokenizer(models.BPE({"<end>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<end>"])
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edited(folder: Path, change) -> Path:
    spec = json.loads((byte_level(folder) / "tokenizer.json").read_text())
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


# ---- what is written


def test_the_demo_model_keeps_its_tokens_merges_and_special_ids():
    found = read(STORYTELLER, 4096)
    spec = json.loads((STORYTELLER / "tokenizer.json").read_text())
    assert (found["model"], found["pre"]) == ("gpt2", "gpt-2")
    assert [t.decode() for t in found["tokens"]] == sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    assert [m.decode() for m in found["merges"]] == [" ".join(m) for m in spec["model"]["merges"]]
    assert list(found["token_type"]) == [CONTROL] * 4 + [NORMAL] * 4092
    assert [found[f"{name}_token_id"] for name in ("bos", "eos", "padding")] == [0, 0, 1]
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, False)
    assert "chat_template" not in found


@pytest.mark.parametrize(("name", "pre"), [("smollm", "smollm"), ("minimind", "gpt-2")])
def test_real_byte_level_tokenizers_get_their_pre_tokenizer(name, pre):
    folder = shared("tokenizers", name)
    spec = json.loads((folder / "tokenizer.json").read_text())
    size = len(spec["model"]["vocab"]) + 2
    found = read(folder, size, {"eos_token_id": 0})
    assert (found["model"], found["pre"], len(found["tokens"])) == ("gpt2", pre, size)
    assert [t.decode() for t in found["tokens"][-2:]] == [f"[PAD{size - 2}]", f"[PAD{size - 1}]"]
    assert list(found["token_type"][-2:]) == [UNUSED, UNUSED]


@pytest.mark.parametrize(
    ("regex", "ignore_merges", "pre"),
    [(LLAMA3, True, "llama-bpe"), (LLAMA3, False, "smaug-bpe"), (QWEN2, False, "qwen2")],
)
def test_split_patterns_are_recognized_by_their_text(regex, ignore_merges, pre, tmp_path):
    tokenizer = Tokenizer(models.BPE({"a": 0}, [], ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read(tmp_path, 1, EOS)["pre"] == pre


def test_a_sentencepiece_style_json_gets_scores_in_the_order_of_its_merges():
    folder = shared("tokenizers", "phi3")
    spec = json.loads((folder / "tokenizer.json").read_text())
    size = 1 + max(token["id"] for token in spec["added_tokens"])
    found = read(folder, size)
    assert (found["model"], found["pre"], found["add_space_prefix"]) == ("llama", "default", True)
    assert (found["bos_token_id"], found["add_bos_token"], found["add_eos_token"]) == (1, True, False)
    types = Counter(found["token_type"].tolist())
    assert (types[BYTE], types[UNKNOWN]) == (256, 1)
    assert found["token_type"][32001] == CONTROL
    order = list(dict.fromkeys("".join(merge.split(" ")) for merge in spec["model"]["merges"]))
    scores = np.array([found["scores"][spec["model"]["vocab"][token]] for token in order])
    assert (np.diff(scores) < 0).all()
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert found["chat_template"] == template


def test_a_vocabulary_without_byte_tokens_still_states_its_begin_token():
    found = read(shared("models", "tinystories656k"), 2048)
    assert (found["model"], found["bos_token_id"], found["eos_token_id"]) == ("llama", 1, 2)
    assert (found["add_bos_token"], found["unknown_token_id"]) == (True, 0)
    assert list(found["token_type"][:4]) == [UNKNOWN, CONTROL, CONTROL, NORMAL]


def test_a_sentencepiece_model_keeps_its_scores_and_types(tmp_path):
    from sentencepiece import SentencePieceProcessor

    source = shared("tokenizers", "llama2", "tokenizer.model")
    shutil.copy(source, tmp_path / "tokenizer.model")
    added = {"32000": {"content": "<|user|>", "special": True}}
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found, theirs = read(tmp_path, 32002), SentencePieceProcessor(str(source))
    assert [t.decode() for t in found["tokens"][:32000]] == [theirs.id_to_piece(i) for i in range(32000)]
    assert list(found["scores"][:32000]) == [theirs.get_score(i) for i in range(32000)]
    assert [found["tokens"][i] for i in (32000, 32001)] == [b"<|user|>", b"[PAD32001]"]
    assert list(found["token_type"][[0, 1, 3, 259, 32000]]) == [UNKNOWN, CONTROL, BYTE, NORMAL, CONTROL]
    assert (found["bos_token_id"], found["eos_token_id"], found["add_bos_token"]) == (1, 2, True)


def test_a_metaspace_pre_tokenizer_is_sentencepiece(tmp_path):
    tokenizer = Tokenizer(models.BPE({"a": 0, "\u2581": 1, "\u2581a": 2}, [("\u2581", "a")]))
    for scheme, prefix in (("first", True), ("never", False)):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", scheme, split=False)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert read(tmp_path, 3, EOS)["add_space_prefix"] is prefix


def test_begin_and_end_tokens_are_those_that_encoding_adds(tmp_path):
    template = processors.TemplateProcessing("<end> $A <end>", special_tokens=[("<end>", 0)])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "eos_token": "<end>"}))
    found = read(byte_level(tmp_path, post_processor=template), 4)
    assert (found["add_bos_token"], found["add_eos_token"], found["bos_token_id"]) == (True, True, 0)


def test_added_tokens_are_control_only_if_they_are_special(tmp_path):
    folder = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert list(read(folder, 6, EOS)["token_type"]) == [CONTROL, NORMAL, NORMAL, NORMAL, USER_DEFINED, UNUSED]


def test_a_chat_template_is_copied_unread(tmp_path):
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }} {% broken"
    (byte_level(tmp_path) / "tokenizer_config.json").write_text(json.dumps({"chat_template": hostile}))
    assert read(tmp_path, 4, EOS)["chat_template"] == hostile
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read(tmp_path, 4, EOS)["chat_template"] == "y"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\x00 raw")
    assert tokenizer_metadata(tmp_path, EOS, 4)["tokenizer.chat_template"].data == b"\xff\x00 raw"


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "pre-tokenizer Whitespace are neither"),
        (
            {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False)])},
            "no twin of the pre-tokenizer Punctuation behavior='Isolated' . ByteLevel",
        ),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "ByteLevel add_prefix_space=True"),
        (
            {"pre_tokenizer": pre_tokenizers.Metaspace("\u2581", "always", split=True)},
            "Metaspace replacement='\u2581' prepend_scheme='always' split=True",
        ),
        ({"normalizer": normalizers.Lowercase()}, "does not apply the normalizer Lowercase"),
        ({"model": models.WordPiece({"a": 0}, unk_token="a")}, "a WordPiece model"),
        ({"model": models.BPE({"a": 0}, [], end_of_word_suffix="</w>")}, "BPE model with end_of_word_suffix"),
        (
            {"post_processor": processors.TemplateProcessing("<end> <end> $A", special_tokens=[("<end>", 0)])},
            r"encoding adds \[0, 0, 1\] around \[1\]",
        ),
        (
            {"post_processor": processors.TemplateProcessing("$A b", special_tokens=[("b", 2)])},
            "encoding adds token 2, but the end token is 0",
        ),
    ],
)
def test_a_tokenizer_without_a_twin_in_llama_cpp_is_refused_by_its_description(changes, said, tmp_path):
    with pytest.raises(Refused, match=said):
        read(byte_level(tmp_path, **changes), 5, EOS)


@pytest.mark.parametrize(
    ("settings", "config", "said"),
    [
        ({}, {}, "names an end token"),
        ({"eos_token": "<stop>"}, {}, "eos_token '<stop>' is not in the vocabulary"),
        ({"eos_token": ["<end>"]}, {}, r"eos_token \['<end>'\] is not in the vocabulary"),
        ({"chat_template": "\ud800"}, EOS, "chat_template is no text"),
    ],
)
def test_settings_that_contradict_the_vocabulary_are_refused(settings, config, said, tmp_path):
    (byte_level(tmp_path) / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(Refused, match=said):
        read(tmp_path, 4, config)


def test_ids_beyond_the_model_and_ambiguous_tokens_are_refused(tmp_path):
    with pytest.raises(Refused, match="ids up to 3, the model 3 embedding rows"):
        read(byte_level(tmp_path), 3, EOS)
    with pytest.raises(Refused, match=r"tokens 4 and 5 are both '\[PAD5\]'"):
        read(edited(tmp_path, lambda spec: spec["model"]["vocab"].update({"[PAD5]": 4})), 6, EOS)
    with pytest.raises(Refused, match="two tokens share an id"):
        read(edited(tmp_path, lambda spec: spec["model"]["vocab"].update({"c": 3})), 4, EOS)


def test_missing_and_broken_tokenizer_files_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"neither tokenizer\.json nor tokenizer\.model"):
        read(tmp_path, 4, EOS)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 16)
    with pytest.raises(Refused, match=r"tokenizer\.model: "):
        read(tmp_path, 4, EOS)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Refused, match=r"tokenizer\.json: "):
        read(tmp_path, 4, EOS)


def test_a_sentencepiece_model_that_merges_spaces_is_refused(tmp_path):
    shutil.copy(shared("models", "stories260K", "tok512.model"), tmp_path / "tokenizer.model")
    with pytest.raises(Refused, match="uses merging of repeated spaces"):
        read(tmp_path, 512, EOS)


def test_malformed_added_tokens_are_refused(tmp_path):
    shutil.copy(shared("tokenizers", "llama2", "tokenizer.model"), tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": "many"}))
    with pytest.raises(Refused, match=r"added tokens are malformed .*'many'"):
        read(tmp_path, 32001, EOS)
