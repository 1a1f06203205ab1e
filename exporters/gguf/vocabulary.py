"""Tokens, merges and scores in llama.cpp's terms, from tokenizer.json or a SentencePiece model.

llama.cpp has two tokenizers for Llama models:

- ``gpt2``: byte-level BPE. Merges are copied. How text is cut into words before merging is code in
  llama.cpp that ``pre`` names; it is chosen here by the structure of tokenizer.json's
  pre-tokenizer, and one that has no twin there is refused.
- ``llama``: SentencePiece BPE, spaces as "▁", bytes as "<0x..>". There is no merge list: llama.cpp
  joins the neighbours whose union has the best score. With score = -rank of the first merge that
  makes a token this is tokenizer.json's order, provided every pair that can make a token is listed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqaf import spm
from edgeqaf.errors import Refused

Json = Mapping[str, Any]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.h, enum llama_token_type
LOWEST = -1e9  # what sentencepiece itself gives to pieces that no merge should make
REMEDY = "take the tokenizer of a GGUF file of the same model: --tokenizer-from base.gguf; or leave GGUF out"
SPACE = spm.SPACE
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREE_DIGITS, ONE_DIGIT = (f"Split {CONTRACTIONS}{digits}{REST}" for digits in (r"\p{N}{1,3}", r"\p{N}"))
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
O200K = (  # GPT-4o's; llama.cpp cuts before combining marks, which this does not
    rf"Split [^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES, GPT2_WORDS, DIGITS = "ByteLevel", "ByteLevel with GPT-2's words", "single Digits"
# (steps of the pre-tokenizer, ignore_merges) -> tokenizer.ggml.pre; llama-vocab.cpp, llm_tokenizer_bpe
PRE_TOKENIZERS = {
    ((GPT2_WORDS,), False): "gpt-2",
    ((DIGITS, GPT2_WORDS), False): "smollm",
    ((THREE_DIGITS, BYTES), True): "llama-bpe",
    ((THREE_DIGITS, BYTES), False): "smaug-bpe",
    ((ONE_DIGIT, BYTES), False): "qwen2",
    ((O200K, BYTES), False): "gpt-4o",
}


@dataclass(frozen=True)
class Token:
    """text: as llama.cpp stores it; type: one of the six above; score: only for ``llama``."""

    text: str
    type: int = NORMAL
    score: float = 0.0


@dataclass(frozen=True)
class Vocabulary:
    """model, pre: tokenizer.ggml.model and .pre. merges: "left right", only for gpt2. space_prefix: only for llama."""

    model: str
    pre: str
    tokens: dict[int, Token]
    merges: list[str]
    space_prefix: bool = False


def from_json(spec: Json) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json, added tokens included."""
    model = spec["model"]
    unusual = [k for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(k)]
    if model.get("type") != "BPE" or unusual:
        raise Refused(
            f"tokenizer.json: a {model.get('type')} model{' with ' + ', '.join(unusual) if unusual else ''}; "
            "GGUF export supports plain BPE",
            REMEDY,
        )
    found = tuple(_steps(spec.get("pre_tokenizer")))
    vocabulary = _byte_level(spec, found) if BYTES in found or GPT2_WORDS in found else _sentencepiece(spec, found)
    shared = len(model["vocab"]) - len(vocabulary.tokens)
    if shared != ("\t" in model["vocab"] and model["vocab"].get("<0x09>") == model["vocab"]["\t"]):
        raise Refused("tokenizer.json: two tokens share an id", "the file is corrupt; fetch it again")
    for added in spec.get("added_tokens") or []:
        before = vocabulary.tokens.get(added["id"], Token("", score=LOWEST))
        if before.type != UNKNOWN:
            kind = CONTROL if added["special"] else USER_DEFINED
            vocabulary.tokens[added["id"]] = Token(added["content"], kind, before.score)
    return vocabulary


def from_sentencepiece(folder: Path) -> Vocabulary:
    """The vocabulary of a ``tokenizer.model`` and what is added to it; piece types are numbered as llama.cpp's."""
    proto = spm.parse(folder / "tokenizer.model")
    tokens = {i: Token(p.piece, p.type, p.score) for i, p in enumerate(proto.pieces)}
    for i, (text, special) in spm.declared_tokens(folder).items():
        tokens[i] = Token(text, CONTROL if special else USER_DEFINED, LOWEST)
    return Vocabulary("llama", "default", tokens, [], proto.normalizer_spec.add_dummy_prefix)


def _byte_level(spec: Json, found: tuple[str, ...]) -> Vocabulary:
    model, normalizer = spec["model"], spec.get("normalizer")
    pre = PRE_TOKENIZERS.get((found, bool(model.get("ignore_merges"))))
    if pre is None:
        raise Refused(
            f"tokenizer.json: llama.cpp has no twin of the pre-tokenizer {' + '.join(found)}"
            f"{' that ignores merges' if model.get('ignore_merges') else ''}",
            REMEDY,
        )
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise Refused(f"tokenizer.json: llama.cpp does not apply the normalizer {normalizer.get('type')}", REMEDY)
    merges = [f"{left} {right}" for left, right in _merges(model)]
    return Vocabulary("gpt2", pre, {i: Token(text) for text, i in model["vocab"].items()}, merges)


def _sentencepiece(spec: Json, found: tuple[str, ...]) -> Vocabulary:
    model = spec["model"]
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(_merges(model)):
        scores.setdefault(left + right, -float(rank))
    tokens = {}
    for text, i in model["vocab"].items():
        if text == "\t" and i == model["vocab"].get("<0x09>"):  # Gemma's tab is its byte's token
            continue
        is_byte = bool(model.get("byte_fallback")) and BYTE_TOKEN.fullmatch(text)
        kind = UNKNOWN if text == model.get("unk_token") else BYTE if is_byte else NORMAL
        tokens[i] = Token(text, kind, scores.get(text, LOWEST if len(text) > 1 else 0.0))
    return Vocabulary("llama", "default", tokens, [], _space_prefix(spec, found))


def _space_prefix(spec: Json, found: tuple[str, ...]) -> bool:
    """Whether a space is put before the text; refuses steps that are not SentencePiece's."""
    normalizer = spec.get("normalizer")
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if (not found or _splits_spaces(spec["pre_tokenizer"])) and steps in ([prepend, replace], [replace]):
        return prepend in steps
    metaspace = spec.get("pre_tokenizer") or {}
    whole = metaspace.get("type") == "Metaspace" and metaspace.get("split") is False
    if not steps and whole and metaspace.get("replacement") == SPACE:
        return metaspace.get("prepend_scheme") != "never"
    described = " + ".join([str(step.get("type")) for step in steps] + list(found)) or "none"
    raise Refused(
        f"tokenizer.json: normalizer and pre-tokenizer {described} are neither byte-level nor SentencePiece's", REMEDY
    )


def _splits_spaces(pre: Json) -> bool:
    """Whether a pre-tokenizer splits at spaces alone, of which a normalizer that replaces them leaves none."""
    return pre.get("type") == "Split" and pre.get("pattern") == {"String": " "}


def _steps(pre: Json | None) -> Iterator[str]:
    """A pre-tokenizer as readable steps; what makes a difference shows, so unknown ones never match."""
    if pre is None:
        return
    kind = pre.get("type")
    if kind == "Sequence":
        for part in pre["pretokenizers"]:
            yield from _steps(part)
    elif kind == "ByteLevel" and not pre.get("add_prefix_space"):
        yield GPT2_WORDS if pre.get("use_regex", True) else BYTES
    elif kind == "Digits" and pre.get("individual_digits"):
        yield DIGITS
    elif kind == "Split" and pre.get("behavior") == "Isolated" and not pre.get("invert"):
        yield f"Split {next(iter(pre['pattern'].values()))}"
    else:
        yield " ".join([str(kind), *(f"{k}={v!r}" for k, v in pre.items() if k != "type")])


def _merges(model: Json) -> Iterator[tuple[str, str]]:
    for merge in model.get("merges") or []:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if " " in left + right:
            raise Refused(f"tokenizer.json: the merge {left!r} + {right!r} contains a space", REMEDY)
        yield left, right
