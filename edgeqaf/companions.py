"""Config and tokenizer files: they travel with the weights, opaque to us, copied byte for byte.

One of them says more in a model folder than at its source: there config.json names our quantizer, so
that transformers loads the folder (``edgeqaf.hf``). The key is one line after the opening brace, the
rest are the source's bytes; a copy that leaves the folder, into an exported one, is without the line.
"""

import shutil
from pathlib import Path

from edgeqaf.digest import file_sha256

CONFIG = "config.json"
FRAME = "gguf_frame.safetensors"  # of a model that came as a GGUF file: see exporters.gguf.frame
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# What a model folder carries beside its weights; each is opaque to us and copied as it is.
COMPANIONS = (CONFIG, "generation_config.json", *TOKENIZER_FILES, FRAME)
QUANT_METHOD = "edgeqaf"
QUANTIZATION = "quantization_config"
LINE = f'\n "{QUANTIZATION}": {{"quant_method": "{QUANT_METHOD}"}},'.encode()


def copy_companions(source: Path, target: Path) -> None:
    """Copy config and tokenizer files that exist in ``source``; config.json as it was before `name_quantizer`."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (target / CONFIG).is_file():
        head, brace, rest = (target / CONFIG).read_bytes().partition(b"{")
        (target / CONFIG).write_bytes(head + brace + rest.removeprefix(LINE))


def name_quantizer(folder: Path) -> None:
    """Put the line into a copied config.json by which transformers finds our quantizer."""
    head, brace, rest = (folder / CONFIG).read_bytes().partition(b"{")
    (folder / CONFIG).write_bytes(head + brace + LINE + rest)


def companions_digest(folder: Path) -> dict[str, str]:
    """SHA-256 of each companion file in ``folder``, by name."""
    present = [name for name in COMPANIONS if (folder / name).is_file()]
    return {name: file_sha256(folder / name) for name in present}
