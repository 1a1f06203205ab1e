"""The tokenizer of another GGUF file, for a model whose own one cannot be put in llama.cpp's terms.

Fine-tuning does not change a tokenizer, so the block of metadata in any GGUF file of the base model fits.
"""

from pathlib import Path

from edgeqaf.errors import Refused
from edgeqaf.jsonfile import read_json
from exporters.gguf.container import Type, Value
from exporters.gguf.reader import parse

PREFIX, TOKENS = "tokenizer.", "tokenizer.ggml.tokens"
OTHER = "pass a GGUF file of the model that was tuned, with as many tokens as it has embedding rows"


def borrowed_tokenizer(donor: Path, folder: Path, vocab_size: int) -> dict[str, Value]:
    """Every ``tokenizer.*`` key of the GGUF file ``donor``, as it is there.

    Raises Refused unless it has ``vocab_size`` tokens, and those that the tokenizer.json of ``folder`` has.
    """
    from gguf import GGML_QUANT_SIZES

    metadata = parse(donor, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}).metadata
    tokens = metadata.get(TOKENS, Value(Type.UINT32, 0)).data
    if not isinstance(tokens, list) or "tokenizer.ggml.model" not in metadata:
        raise Refused(f"{donor} has no tokenizer", OTHER)
    if len(tokens) != vocab_size:
        raise Refused(f"{donor} has {len(tokens)} tokens, the model {vocab_size} embedding rows", OTHER)
    for i, text in sorted(_vocabulary(folder).items()):
        if i >= vocab_size or tokens[i] != text.encode():
            theirs = tokens[i].decode("utf-8", "replace") if i < vocab_size else None
            raise Refused(f"token {i} is {theirs!r} in {donor}, and {text!r} in {folder / 'tokenizer.json'}", OTHER)
    return {key: value for key, value in metadata.items() if key.startswith(PREFIX)}


def _vocabulary(folder: Path) -> dict[int, str]:
    """id -> text of the tokens of a tokenizer.json that were not added to it; empty where that is not plain."""
    path = folder / "tokenizer.json"
    spec = read_json(path) if path.is_file() else {}
    vocabulary = spec.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict):
        return {}
    added = {token.get("id") for token in spec.get("added_tokens") or []}
    # sorted, so that of two texts with one id the byte's stays: Gemma has "<0x09>" and "\t"
    return {i: text for text, i in sorted(vocabulary.items()) if i not in added}
