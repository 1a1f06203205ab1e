"""The ``tokenizer.*`` metadata of a GGUF file, from a Hugging Face folder's tokenizer files.

tokenizer.json is what transformers encodes with, so it goes first; a lone SentencePiece
``tokenizer.model`` is read too. Whether llama.cpp shall add a begin or end token is taken from what
the real tokenizer does. The chat template is copied as it is, never parsed.

What GGUF cannot express, and llama.cpp therefore does differently: NFC normalization, spaces
stripped beside special tokens, and characters without a token in a vocabulary that has no byte
tokens (there llama.cpp's tokenizer fails).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from edgeqaf.spm import settings_of
from exporters.gguf.container import Type, Value, string, uint32
from exporters.gguf.vocabulary import (
    LOWEST,
    REMEDY,
    UNUSED,
    Json,
    Token,
    Vocabulary,
    from_json,
    from_sentencepiece,
)

# how Hugging Face's files call a special token -> how GGUF does
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
BROKEN = "the tokenizer files do not belong together; fetch the model again"


def tokenizer_metadata(folder: Path, config: Json, vocab_size: int) -> dict[str, Value]:
    """Every ``tokenizer.*`` key, with exactly ``vocab_size`` tokens; ids without one are named [PADi].

    Raises Refused where llama.cpp could not encode as the folder's tokenizer does.
    """
    settings = settings_of(folder)
    whole = (folder / "tokenizer.json").is_file()
    if not whole and not (folder / "tokenizer.model").is_file():
        raise Refused(f"{folder} has neither tokenizer.json nor tokenizer.model", "copy the base model's tokenizer")
    begin, end = _added_when_encoding(folder)
    vocabulary = from_json(read_json(folder / "tokenizer.json")) if whole else from_sentencepiece(folder)
    special = _special_ids(vocabulary, settings, config)
    if begin is not None:
        special["bos"] = begin
    if end not in (None, special["eos"]):
        raise Refused(f"{folder}: encoding adds token {end}, but the end token is {special['eos']}", REMEDY)
    tokens = _in_order(vocabulary, vocab_size)
    entries = {
        "tokenizer.ggml.model": string(vocabulary.model),
        "tokenizer.ggml.pre": string(vocabulary.pre),
        "tokenizer.ggml.tokens": Value(Type.ARRAY, [t.text.encode() for t in tokens], Type.STRING),
        "tokenizer.ggml.token_type": Value(Type.ARRAY, np.array([t.type for t in tokens], "<i4"), Type.INT32),
        **{f"tokenizer.ggml.{SPECIAL[name]}_token_id": uint32(i) for name, i in special.items()},
        "tokenizer.ggml.add_bos_token": Value(Type.BOOL, begin is not None),
        "tokenizer.ggml.add_eos_token": Value(Type.BOOL, end is not None),
    }
    if vocabulary.model == "gpt2":
        entries["tokenizer.ggml.merges"] = Value(Type.ARRAY, [m.encode() for m in vocabulary.merges], Type.STRING)
    else:
        scores = np.array([t.score for t in tokens], "<f4")
        entries["tokenizer.ggml.scores"] = Value(Type.ARRAY, scores, Type.FLOAT32)
        entries["tokenizer.ggml.add_space_prefix"] = Value(Type.BOOL, vocabulary.space_prefix)
    template = _chat_template(folder, settings)
    return entries if template is None else {**entries, "tokenizer.chat_template": string(template)}


def _added_when_encoding(folder: Path) -> tuple[int | None, int | None]:
    """The tokens that encoding a text puts before and after it."""
    from edgeqaf.tokenizer import backend

    tokenizer = backend(folder)
    plain, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    at = next((i for i in range(len(full) + 1) if full[i : i + len(plain)] == plain), None)
    before, after = (full, plain) if at is None else (full[:at], full[at + len(plain) :])
    if at is None or len(before) > 1 or len(after) > 1:
        raise Refused(
            f"{folder}: encoding adds {full} around {plain}; llama.cpp adds at most one token on each side", REMEDY
        )
    return next(iter(before), None), next(iter(after), None)


def _special_ids(vocabulary: Vocabulary, settings: Json, config: Json) -> dict[str, int]:
    """Ids of the special tokens that tokenizer_config.json names, else config.json; there is always an "eos"."""
    ids = {token.text: i for i, token in vocabulary.tokens.items()}
    found: dict[str, int] = {}
    for name in SPECIAL:
        text, number = settings.get(f"{name}_token"), config.get(f"{name}_token_id")
        text = text.get("content") if isinstance(text, Mapping) else text
        number = number[0] if isinstance(number, list) and number else number
        if text is not None and (not isinstance(text, str) or text not in ids):
            raise Refused(f"tokenizer_config.json: {name}_token {text!r} is not in the vocabulary", BROKEN)
        if text is not None:
            found[name] = ids[text]
        elif isinstance(number, int) and number in vocabulary.tokens:
            found[name] = number
    if "eos" not in found:
        raise Refused(
            "neither tokenizer_config.json nor config.json names an end token",
            "set eos_token in tokenizer_config.json; llama.cpp would take an arbitrary token for it",
        )
    return found


def _in_order(vocabulary: Vocabulary, vocab_size: int) -> list[Token]:
    if vocabulary.tokens and max(vocabulary.tokens) >= vocab_size:
        raise Refused(
            f"the tokenizer has ids up to {max(vocabulary.tokens)}, the model {vocab_size} embedding rows", BROKEN
        )
    tokens = [vocabulary.tokens.get(i, Token(f"[PAD{i}]", UNUSED, LOWEST)) for i in range(vocab_size)]
    first: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not token.text or "\0" in token.text:
            raise Refused(
                f"token {i} is {token.text!r}; llama.cpp cannot hold a token that is empty or has a zero", REMEDY
            )
        if first.setdefault(token.text, i) != i:
            raise Refused(f"the tokens {first[token.text]} and {i} are both {token.text!r}", BROKEN)
    return tokens


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> bytes | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_bytes()
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    try:
        return template.encode() if isinstance(template, str) else None
    except UnicodeEncodeError as error:
        raise Refused(f"tokenizer_config.json: chat_template is no text ({error})", BROKEN) from None
