"""A SentencePiece model as a tokenizer of the tokenizers library, for folders without a tokenizer.json.

transformers 5.23 orders the merges of such a folder by the ids of their results
(convert_slow_tokenizer.py, SentencePieceExtractor); Llama 2's pieces of spaces have low ids and the lowest
score, so it cuts runs of spaces otherwise than the model was trained to. Here the scores decide, and among
equal ones the longer left part: SentencePiece then grows a piece from the left (bpe_model.cc, Model::Encode).
"""

from pathlib import Path
from typing import Any

from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json

SPACE = "\u2581"
BROKEN = "the tokenizer files are malformed or do not belong together; fetch the model again"


def parse(path: Path) -> Any:
    """The parsed ``tokenizer.model``; Refused unless it is byte-pair encoding of text as it is."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own class differs between its implementations
        raise Refused(f"{path}: {error}", "the file is corrupt; fetch it again") from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    features = {
        "a Unigram model": trainer.model_type != trainer.BPE,
        "spaces as suffixes": trainer.treat_whitespace_as_suffix,
        "merging of repeated spaces": normalizer.remove_extra_whitespaces,
        f"{normalizer.name} normalization": bool(normalizer.precompiled_charsmap),
    }
    unsupported = [name for name, present in features.items() if present]
    if unsupported:
        raise Refused(
            f"{path} uses {', '.join(unsupported)}, which edgeqaf does not read",
            "put the tokenizer.json that transformers made of it beside it, or use another base model",
        )
    return proto


def settings_of(folder: Path) -> dict[str, Any]:
    """The folder's tokenizer_config.json; empty where there is none."""
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def declared_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """id -> (text, special) of the tokens that the folder's JSON files add to its pieces."""
    found: dict[int, tuple[str, bool]] = {}
    path = folder / "added_tokens.json"
    try:
        for text, i in (read_json(path) if path.is_file() else {}).items():
            found[int(i)] = (str(text), False)
        for i, added in settings_of(folder).get("added_tokens_decoder", {}).items():
            found[int(i)] = (str(added["content"]), bool(added.get("special")))
        "".join(text for text, _ in found.values()).encode()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"{folder}: the added tokens are malformed ({error!r})", BROKEN) from None
    return found


def backend(folder: Path) -> Any:
    """The folder's ``tokenizer.model`` and what its JSON files add, as a `tokenizers.Tokenizer`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    proto, settings = parse(folder / "tokenizer.model"), settings_of(folder)
    kinds = proto.SentencePiece
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    unknown = next((p.piece for p in proto.pieces if p.type == kinds.UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(proto, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = proto.normalizer_spec.add_dummy_prefix
    prepend = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    pieces = {i: (p.piece, p.type != kinds.USER_DEFINED) for i, p in enumerate(proto.pieces) if p.type in (2, 3, 4)}
    for i, (text, special) in sorted((pieces | declared_tokens(folder)).items()):
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special)])
        if tokenizer.token_to_id(text) != i:
            raise Refused(
                f"{folder}: the added token {text!r} would get id {tokenizer.token_to_id(text)}, not {i}", BROKEN
            )
    begin, end = (_added(settings, name, default) for name, default in (("bos", True), ("eos", False)))
    named = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((begin, end)) if token]
    if any(i is None for _, i in named):
        raise Refused(f"{folder}: {begin!r} or {end!r} is not in the vocabulary", BROKEN)
    tokenizer.post_processor = processors.TemplateProcessing([t for t in (begin, "$A", end) if t], special_tokens=named)
    return tokenizer


def _added(settings: dict[str, Any], name: str, default: bool) -> str | None:
    """The text of the token that encoding adds at one end, if it adds one."""
    token = settings.get(f"{name}_token", {"bos": "<s>", "eos": "</s>"}[name])
    text = token.get("content") if isinstance(token, dict) else token
    return str(text) if text and settings.get(f"add_{name}_token", default) else None


def _merges(proto: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best first."""
    found = []
    for piece in proto.pieces:
        if piece.type == proto.SentencePiece.NORMAL:
            cuts = [(piece.piece[:i], piece.piece[i:]) for i in range(1, len(piece.piece))]
            found += [(piece.score, len(a), len(b), a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(a, b) for *_, a, b in found]
