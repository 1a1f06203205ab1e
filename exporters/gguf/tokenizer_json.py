"""tokenizer.json from the ``tokenizer.*`` metadata of a GGUF file: the inverse of `exporters.gguf.tokenizer`.

Both of llama.cpp's kinds are byte-pair merging in the tokenizers library: ``gpt2`` with its merges and the words that
``pre`` names, ``llama`` (SentencePiece) with merges in the order of their scores. How a text is cut into words is
not in a file, only its name; a name that is not known here is refused, and the tokenizer then comes from a folder.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeqaf.errors import Refused
from exporters.gguf.container import Type
from exporters.gguf.numbers import Metadata, text_in
from exporters.gguf.vocabulary import (
    BYTES,
    CONTROL,
    DIGITS,
    GPT2_WORDS,
    PRE_TOKENIZERS,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
)

FOLDER = "name a Hugging Face folder that has the tokenizer: --tokenizer FOLDER"
Json = dict[str, Any]


def tokenizer_files(metadata: Metadata) -> dict[str, bytes]:
    """File name -> bytes of tokenizer.json and tokenizer_config.json; Refused for a tokenizer that is not known."""
    kind = text_in(metadata, "tokenizer.ggml.model", "none")
    tokens, types = _tokens(metadata)
    model, words = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind, _unknown)(metadata, tokens)
    special = _special(metadata, tokens)
    added = [
        {
            "id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": types[i] != USER_DEFINED,
        }
        for i in range(len(tokens))
        if types[i] in (CONTROL, USER_DEFINED, UNKNOWN)
    ]  # fmt: skip
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **words}
    spec |= {"post_processor": _added_when_encoding(metadata, kind, special, tokens), "model": model}
    settings: Json = {f"{name}_token": tokens[i] for name, i in special.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = text_in(metadata, "tokenizer.chat_template", "")
    # Not indented: json would walk hundreds of thousands of words in Python.
    files = {"tokenizer.json": spec, "tokenizer_config.json": settings}
    return {name: json.dumps(content, ensure_ascii=False).encode() for name, content in files.items()}


def _unknown(metadata: Metadata, tokens: list[str]) -> tuple[Json, Json]:
    raise Refused(f"its tokenizer is of kind {text_in(metadata, 'tokenizer.ggml.model', 'none')!r}", FOLDER)


def _byte_level(metadata: Metadata, tokens: list[str]) -> tuple[Json, Json]:
    """(model, the steps around it) of llama.cpp's gpt2 kind."""
    pre = _pre(metadata)
    known = {name: (steps, ignore) for (steps, ignore), name in PRE_TOKENIZERS.items()}
    if pre not in known:
        raise Refused(f"how its tokenizer {pre!r} cuts text into words is not known here", FOLDER)
    steps, ignore = known[pre]
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore,
        "vocab": {text: i for i, text in enumerate(tokens)},
        "merges": [pair.split(" ", 1) for pair in _merges(metadata)],
    }  # fmt: skip
    pieces = [_step(step) for step in steps]
    words = pieces[0] if len(pieces) == 1 else {"type": "Sequence", "pretokenizers": pieces}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return model, {"normalizer": None, "pre_tokenizer": words, "decoder": decoder}


def _pre(metadata: Metadata) -> str:
    """How text is cut into words; Llama 3's way has three names (llama-vocab.cpp, llama_vocab::impl::load)."""
    name = text_in(metadata, "tokenizer.ggml.pre", "default")
    return "llama-bpe" if name in ("llama3", "llama-v3") else name


def _step(step: str) -> Json:
    if step in (BYTES, GPT2_WORDS):
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": step == GPT2_WORDS}
    if step == DIGITS:
        return {"type": "Digits", "individual_digits": True}
    pattern = {"Regex": step.removeprefix("Split ")}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _sentencepiece(metadata: Metadata, tokens: list[str]) -> tuple[Json, Json]:
    """(model, the steps around it) of llama.cpp's llama kind, whose order of merging is by score."""
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or not isinstance(scores.data, np.ndarray) or len(scores.data) != len(tokens):
        raise Refused("its tokenizer has no score for each token", FOLDER)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix")
    prepend = prefix is None or bool(prefix.data)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    model = {
        "type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "unk_token": tokens[unknown.data] if unknown and isinstance(unknown.data, int) else None, "fuse_unk": True,
        "byte_fallback": "<0x00>" in tokens, "ignore_merges": False,
        "vocab": {text: i for i, text in enumerate(tokens)}, "merges": _by_score(tokens, scores.data),
    }  # fmt: skip
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizers = [{"type": "Prepend", "prepend": SPACE}] * prepend + [replace]
    back: list[Json] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    back += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    back += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prepend
    return model, {
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
    }  # fmt: skip


def _by_score(tokens: list[str], scores: Any) -> list[list[str]]:
    """Every pair of tokens whose union is a token, the best union first; of one union the parts of lower ids first."""
    ids = {text: i for i, text in enumerate(tokens)}
    pairs = [
        (-float(scores[i]), i, ids[text[:at]], ids[text[at:]])
        for text, i in ids.items()
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    return [[tokens[left], tokens[right]] for _, _, left, right in sorted(pairs)]


def _special(metadata: Metadata, tokens: list[str]) -> dict[str, int]:
    found = {}
    for theirs, ours in {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}.items():
        value = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if value is not None and isinstance(value.data, int) and 0 <= value.data < len(tokens):
            found[ours] = value.data
    return found


def _added_when_encoding(metadata: Metadata, kind: str, special: dict[str, int], tokens: list[str]) -> Json | None:
    """The template that puts begin and end tokens around a text, where llama.cpp does (llama-vocab.cpp, load)."""
    wanted = {"bos": kind == "llama" or _pre(metadata) == "llama-bpe", "eos": False}
    for name in wanted:
        value = metadata.get(f"tokenizer.ggml.add_{name}_token")
        wanted[name] = bool(value.data) if value and value.type is Type.BOOL else wanted[name]
    around = [name for name in ("bos", "eos") if wanted[name] and name in special]
    if not around:
        return None

    def tokens_of(sequences: str) -> Iterator[Json]:
        for i, sequence in enumerate(sequences):
            if "bos" in around:
                yield {"SpecialToken": {"id": tokens[special["bos"]], "type_id": i}}
            yield {"Sequence": {"id": sequence, "type_id": i}}
            if "eos" in around:
                yield {"SpecialToken": {"id": tokens[special["eos"]], "type_id": i}}

    texts = {tokens[special[name]]: special[name] for name in around}
    return {
        "type": "TemplateProcessing", "single": list(tokens_of("A")), "pair": list(tokens_of("AB")),
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in texts.items()},
    }  # fmt: skip


def _tokens(metadata: Metadata) -> tuple[list[str], list[int]]:
    """Texts and types; Refused where they are not lists of one length of distinct tokens."""
    tokens, types = (metadata.get(f"tokenizer.ggml.{part}") for part in ("tokens", "token_type"))
    if tokens is None or not isinstance(tokens.data, list) or not tokens.data:
        raise Refused("it has no tokens", FOLDER)
    count = len(tokens.data)
    kinds = [1] * count if types is None else [int(t) for t in types.data] if isinstance(types.data, np.ndarray) else []
    texts = [raw.decode("utf-8", "replace") for raw in tokens.data]
    if len(kinds) != count or len(set(texts)) != count:
        raise Refused(f"its {count} tokens have {len(kinds)} types and {len(set(texts))} different texts", FOLDER)
    return texts, kinds


def _merges(metadata: Metadata) -> list[str]:
    merges = metadata.get("tokenizer.ggml.merges")
    if merges is None or not isinstance(merges.data, list):
        raise Refused("its tokenizer has no merges", FOLDER)
    return [raw.decode("utf-8", "replace") for raw in merges.data]
